"""Code is named by its content: by what it imports as well, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.integrity import code_sha256, imported

FILES = {
    "network.py": "from .base import A\nfrom .tasks.images import B\ndef f():\n  from .layers import dense\n  from .layers.conv import C\n",
    "base.py": "import json\n",
    "tasks/images.py": "from ..base import A\nfrom . import helper\n\n\ndef figures():\n    from .pictures import D\n",
    "tasks/helper.py": "from .images import B\n",
    "tasks/pictures.py": "",
    "layers/dense.py": "",
    "layers/conv.py": "",
    "layers/other.py": "",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(package: Path, *, nested: bool) -> set[str]:
    return {str(file.relative_to(package)) for file in imported(package / "network.py", nested=nested)}


def test_what_a_file_imports_is_found_through_others_and_round_a_cycle(package: Path) -> None:
    assert names(package, nested=False) == {"network.py", "base.py", "tasks/images.py", "tasks/helper.py"}


def test_imports_inside_functions_count_where_asked(package: Path) -> None:
    found = names(package, nested=True) - names(package, nested=False)
    assert found == {"layers/dense.py", "layers/conv.py", "tasks/pictures.py"}


def test_the_hash_changes_with_any_of_the_files_and_with_no_other(package: Path) -> None:
    before = code_sha256(imported(package / "network.py", nested=True))
    (package / "layers/other.py").write_text("changed = True\n")
    assert code_sha256(imported(package / "network.py", nested=True)) == before
    (package / "layers/conv.py").write_text("changed = True\n")
    assert code_sha256(imported(package / "network.py", nested=True)) != before
