"""What the READMEs say to type can be typed, what they name is there, and they stay short."""

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
EVERY = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *ROOT.glob("*/README.md"), ROOT / "tests" / "benchmarks" / "README.md")
}
PACKAGES = ("pipelines", "workloads", "cluster")
MOST_BYTES, MOST_COLUMNS = 10_000, 140  # of the README at the top; of a line of any


def commands() -> list[str]:
    blocks = [block for text in EVERY.values() for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)]
    blocks.append(README.partition("```")[0].replace("    make", "make"))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    typed = [line for line in lines if re.match(r"(\$ )?([A-Z_]+=\S+ )*(raylway|python -m pipelines|make|ray job submit) ", line)]
    return sorted({line.removeprefix("$ ").partition("  #")[0].strip() for line in typed})


COMMANDS = commands()


def test_the_readme_at_the_top_is_short():
    assert len(README.encode()) <= MOST_BYTES


def test_no_line_is_too_long():
    assert not {f"{name}:{at}" for name, text in EVERY.items() for at, line in enumerate(text.splitlines(), 1) if len(line) > MOST_COLUMNS}


def test_the_readme_has_commands():
    assert {"make demo", "make test", "raylway train cnn"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_parses(command):
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
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


def test_every_file_that_a_readme_names_exists():
    named = {
        f"{name}: {path}"
        for name, text in EVERY.items()
        if name != "infra/README.md"  # tests/infra/test_readme.py reads that one
        for path in re.findall(r"\b((?:workloads|pipelines|cluster|tests|infra)/[\w/.*-]+)", text)
        if not list(ROOT.glob(path.rstrip("/."))) and path not in ("workloads/linear.py", "workloads/recipes/linear.yaml")
    }
    named |= {
        f"{name}: {link}"
        for name, text in EVERY.items()
        for link in re.findall(r"\]\(([^)#:]+)\)", text)
        if not ((ROOT / name).parent / link).exists()
    }
    assert not named


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_readme_names_each_of_its_files(package):
    """Under "The files"."""
    tree = EVERY[f"{package}/README.md"].partition("## The files")[2]
    files = {path.name for path in (ROOT / package).rglob("*.py")}  # no name stands twice: test_house.py
    assert files == {name.rpartition("/")[2] for name in re.findall(r"[\w/]+\.py", tree)} | {"__init__.py"}


def test_the_readmes_own_workload_trains_and_registers(place):
    for room in ("workloads", "pipelines", "cluster"):
        shutil.copytree(ROOT / room, place / room, ignore=shutil.ignore_patterns("__pycache__"))
    written = re.findall(r"```(?:python|yaml)\n# (workloads/\S+)\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in written] == ["workloads/linear.py", "workloads/recipes/linear.yaml"]
    for name, text in written:
        (place / name).write_text(text)
    code, result, err = raylway("train", "linear", *CPU_QUICK, "--json", cwd=place, PYTHONPATH=str(place))
    assert code == 0, err
    assert result["model"]["name"] == "linear"
    assert result["metrics"]["test/accuracy"] > 0.9
