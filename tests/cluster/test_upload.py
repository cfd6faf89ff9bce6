"""What goes up with a job is what Ray packs, and too much of it is refused by name."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package

from cluster import ClusterError
from cluster.jobs import FILE_BYTES, check_size, package_of
from tests.cli import ROOT

FILES = (
    "train.py",
    "data/kept.csv",
    "data/left.csv",
    ".git/HEAD",
    "runs/cnn/x",
    "a/runs/y",
    ".env",
    ".venv/bin/python",
    "a/__pycache__/b.pyc",
)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("left.csv\n")
    return tmp_path


def packed(folder: Path, target: Path, *excludes: str) -> list[str]:
    """The files that Ray itself packs."""
    every = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    create_package(str(folder), target, include_gitignore=True, excludes=every)
    with zipfile.ZipFile(target) as package:
        return sorted(name for name in package.namelist() if not name.endswith("/"))


def test_ignored_files_caches_runs_and_passwords_stay(folder):
    assert sorted(package_of(folder).files) == [".gitignore", "a/runs/y", "data/kept.csv", "train.py"]


def test_what_is_counted_is_what_ray_packs(folder, tmp_path_factory):
    package = package_of(folder, ["*.csv"])
    assert sorted(package.files) == packed(folder, tmp_path_factory.mktemp("zip") / "package.zip", *package.excludes)
    assert package.bytes == sum((folder / name).stat().st_size for name in package.files)


def test_rayignore_and_excludes_leave_files_out(folder):
    (folder / ".rayignore").write_text("data/\n")
    assert "data/kept.csv" not in package_of(folder).files
    assert "train.py" not in package_of(folder, ["train.py"]).files


def test_other_content_has_another_address(folder):
    before = package_of(folder).uri
    assert package_of(folder).uri == before
    (folder / "data" / "left.csv").write_text("ignored, and other than before")
    assert package_of(folder).uri == before
    (folder / "train.py").write_text("other")
    assert package_of(folder).uri != before


def test_a_stray_file_of_200_mb_is_refused_by_name(folder):
    with (folder / "data" / "stray.bin").open("wb") as file:
        file.truncate(200 << 20)  # a hole: it takes no room on the disk
    with pytest.raises(
        ClusterError, match=r"^data/stray.bin \(200.0 MiB\): a file that goes up may have 100.0 MiB at most; leave files out by"
    ):
        package_of(folder)
    assert "data/stray.bin" not in package_of(folder, ["stray.bin"]).files


def test_a_file_as_large_as_may_be_goes_up_and_one_byte_more_does_not():
    check_size({"a": FILE_BYTES}, limit_bytes=1 << 40)
    with pytest.raises(ClusterError, match=r"^b \("):
        check_size({"a": FILE_BYTES, "b": FILE_BYTES + 1}, limit_bytes=1 << 40)


def test_many_files_that_are_too_much_together_are_refused_and_the_largest_named():
    sizes = {f"part-{number}": 90 << 20 for number in range(6)} | {"largest": 95 << 20}
    with pytest.raises(
        ClusterError, match=r"7 files of 635.0 MiB would go up, and Ray takes less than 512.0 MiB; the largest: largest \(95.0 MiB\)"
    ):
        check_size(sizes, limit_bytes=512 << 20)


def test_this_repository_is_small():
    assert package_of(ROOT).bytes < 5 << 20
    assert not [name for name in package_of(ROOT).files if name.startswith((".venv", ".git" + os.sep))]
