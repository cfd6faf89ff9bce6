"""What the README says to type can be typed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import typer

from pipelines import config
from pipelines.__main__ import app
from tests.cli import CPU_QUICK, raylway

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [*re.findall(r"```console\n(.*?)```", README, re.DOTALL), README.partition("```")[0].replace("    make", "make")]
COMMANDS = sorted(
    {
        line.removeprefix("$ ").partition("  #")[0].strip()
        for block in BLOCKS
        for line in block.splitlines()
        if re.match(r"(\$ )?(raylway|python -m pipelines|make|ray job submit) ", line)
    }
)


def test_the_readme_has_commands():
    assert {"make demo", "make test", "raylway train cnn"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_parses(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if "--" in words:
        before, words = words[: words.index("--")], words[words.index("--") + 1 :]
        words = ["raylway", *words] if before[0] == "raylway" else words
    arguments = words[1:] if words[0] == "raylway" else words[3:]
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    verb = group.commands[arguments[0]]
    given = verb.make_context(arguments[0], arguments[1:]).params
    if given.get("recipe"):
        config.load(given["recipe"], given["overrides"] or [])


def test_every_file_in_the_readmes_tree_exists():
    tree = README.partition("## The tree")[2].partition("\n## ")[0]
    paths = re.findall(r"^    ((?:workloads|pipelines|cluster|tests|infra)/[\w/.*]*)", tree, re.MULTILINE)
    assert len(paths) > 10
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []


def test_the_readmes_own_workload_trains_and_registers(tmp_path):
    for room in ("workloads", "pipelines", "cluster"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    written = re.findall(r"```(?:python|yaml)\n# (workloads/\S+)\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in written] == ["workloads/linear.py", "workloads/recipes/linear.yaml"]
    for name, text in written:
        (tmp_path / name).write_text(text)
    code, result, err = raylway("train", "linear", *CPU_QUICK, "--json", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 0, err
    assert result["model"]["name"] == "linear"
    assert result["metrics"]["test/accuracy"] > 0.9
