"""Who may import whom: read from the source, so that a rule cannot be broken where no test runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("workloads", "pipelines", "cluster")
HEAVY = ("torch", "ray", "mlflow", "transformers", "pandas", "sklearn")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Every module that a file names in an import, anywhere in it, relative ones made absolute."""
    package = _module(path).split(".") if path.name == "__init__.py" else _module(path).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            head = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{head}.{alias.name}" if f"{head}.{alias.name}" in MODULES else head for alias in node.names}
    return found


FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MODULES = {_module(path) for path in FILES}
IMPORTS = {_module(path): _imports(path) for path in FILES}
BELOW = {
    "tracking": {"errors", "process", "run_record", "run_states", "sealed"},
    "data": {"errors", "run_settings", "sealed", "settings", "tracking"},
    "training": {"data", "errors", "process", "run_record", "run_settings", "sealed", "settings", "tracking"},
    "evaluation": {"config", "data", "errors", "run_record", "run_settings", "run_states", "sealed", "settings", "tracking", "training"},
}
"""A room of nouns -> what it imports of pipelines: no verb, nothing that assembles, and not the screen."""
NOUNS = {room: [name for name in MODULES if name.startswith(f"pipelines.{room}.")] for room in BELOW}


def _importers(package: str) -> set[str]:
    return {module for module, names in IMPORTS.items() if any(name.split(".")[0] == package for name in names)}


def test_the_rules_look_at_the_whole_tree():
    assert {"workloads.cnn", "pipelines.training.loop", "cluster.ray_train"} <= MODULES


def test_ray_is_imported_only_by_the_cluster():
    assert {module.split(".")[0] for module in _importers("ray")} == {"cluster"}


def test_mlflow_is_imported_only_by_tracking():
    assert {module.rpartition(".")[0] for module in _importers("mlflow")} == {"pipelines.tracking"}


def test_transformers_is_imported_only_by_workloads():
    assert {module.split(".")[0] for module in _importers("transformers")} <= {"workloads"}


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("datasets", {"pipelines.data.readers.hub"}),
        ("fsspec", {"pipelines.data.files"}),
        ("PIL", {"workloads.tasks.pictures"}),
        ("tokenizers", {"workloads.tasks.tokens"}),
        ("safetensors", {"pipelines.training.checkpoint", "workloads.served"}),
    ],
)
def test_a_dependency_has_its_home(package, home):
    assert _importers(package) == home


@pytest.mark.parametrize("leaf", ["workloads", "cluster"])
def test_leaves_import_no_other_room(leaf):
    others = set(ROOMS) - {leaf}
    for module in (name for name in MODULES if name.split(".")[0] == leaf):
        assert not {name for name in IMPORTS[module] if name.split(".")[0] in others}, module


def test_workloads_import_each_other_only_relatively():
    """The package travels under another name inside each registered model."""
    for path in (ROOT / "workloads").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.split(".")[0] == "workloads"], path


@pytest.mark.parametrize("room", NOUNS)
def test_nouns_import_of_workloads_only_the_contract(room):
    contract = {"workloads", "workloads.base", "workloads.judging", "workloads.inference", "workloads.served"}
    for module in NOUNS[room]:
        assert {name for name in IMPORTS[module] if name.split(".")[0] == "workloads"} <= contract, module


@pytest.mark.parametrize("room", NOUNS)
def test_nouns_import_what_lies_below_them_and_no_cluster(room):
    used = {name for module in NOUNS[room] for name in IMPORTS[module] & MODULES if name != "pipelines"}
    assert not {name for name in used if name.split(".")[0] == "cluster"}
    assert {name.split(".")[1] for name in used if name.startswith("pipelines.")} - {room} == BELOW[room]


def test_the_loop_knows_neither_files_nor_printing():
    assert not {"pathlib", "os", "json", "sys", "logging"} & IMPORTS["pipelines.training.loop"]


def test_there_is_no_import_cycle():
    TopologicalSorter({module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}).prepare()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "cnn", "optim.lrr=1"],
        ["train", "cnnn"],
        ["recipes"],
        ["submit", "--address", "http://head:8265", "--", "train", "cnn", "optim.lrr=1"],
        ["submit", "--help"],
    ],
)
def test_help_and_recipe_errors_wait_for_nothing_heavy(arguments):
    program = (
        "import sys\n"
        f"sys.argv = ['raylway', *{arguments!r}]\n"
        "import os; leave = os._exit\n"
        "def look(*_):\n"
        f"    print('HEAVY', *(name for name in {HEAVY!r} if name in sys.modules)); sys.stdout.flush(); leave(0)\n"
        "os._exit = look\n"
        "from pipelines.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "look()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"], done.stdout + done.stderr
