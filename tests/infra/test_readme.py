"""What infra/README.md says to type names files, stages, targets and options that are there."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
import yaml

from pipelines import config
from pipelines.__main__ import app
from tests.infra.manifests import INFRA, KUBERNETES, ROOT

README = (INFRA / "README.md").read_text()
LINES = re.findall(r"^    (\S.*)$", README, re.MULTILINE)
COMMANDS = [part.strip() for line in LINES for part in re.split(r" && | \| (?!base64)", line)]
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text()


def test_there_are_three_commands_to_each_kind_of_machine() -> None:
    section = README.partition("## From a laptop to a cluster")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    \S.*\n)+", section, re.MULTILINE)
    assert [block.count("\n") for block in blocks] == [3, 3, 3]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_is_there(command: str) -> None:
    words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", command))
    named = [word for word in words if word.startswith("infra/")]
    named = [word for word in named if not word.startswith("infra/docker/secrets/")]  # made by secrets.sh
    assert [word for word in named if not (ROOT / word).exists()] == []
    if scripts := [word for word in words[:1] if word.startswith("infra/")]:
        assert (ROOT / scripts[0]).stat().st_mode & 0o100, "it can be run"
    KNOWN.get(words[0].removeprefix(".venv/bin/"), _a_script)(words)


def _a_script(words: list[str]) -> None:
    assert words[0].startswith("infra/"), words


def _make(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def _raylway(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    verb = group.commands[arguments[0]]  # type: ignore[attr-defined]
    given = verb.make_context(arguments[0], arguments[1:]).params
    if given.get("recipe"):
        config.load(given["recipe"], given["overrides"] or [])


def _ray(words: list[str]) -> None:
    from ray.dashboard.modules.job.cli import submit

    assert words[1:3] == ["job", "submit"]
    context = submit.make_context("submit", words[3:])
    entry = list(context.params["entrypoint"])
    assert entry[:3] == ["python", "-m", "pipelines"]
    _raylway(entry[3:])


def _kubectl(words: list[str]) -> None:
    if "--kustomize" in words:
        assert (ROOT / words[words.index("--kustomize") + 1] / "kustomization.yaml").is_file()
    if "port-forward" in words:
        service, port = words[words.index("port-forward") + 1 :]
        objects = [each for path in KUBERNETES.rglob("*.yaml") for each in yaml.safe_load_all(path.read_text()) if each]
        ports = {f"service/{each['metadata']['name']}": each["spec"]["ports"] for each in objects if each["kind"] == "Service"}
        # KubeRay makes NAME-head-svc of each cluster
        ports |= {f"service/{each['metadata']['name']}-head-svc": [{"port": 8265}] for each in objects if each["kind"] == "RayCluster"}
        assert int(port) in [each["port"] for each in ports[service]]


def _docker(words: list[str]) -> None:
    if words[1] == "build":
        stages = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE))
        assert {words[at + 1] for at, word in enumerate(words) if word == "--target"} <= stages
        for argument in (words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "--build-arg"):
            assert re.search(rf"^ARG {argument}=", DOCKERFILE, re.MULTILINE)
    else:
        assert words[1] == "compose"


def _export(words: list[str]) -> None:
    text = " ".join(words)
    for secret, key in re.findall(r"get secret (\S+) --output jsonpath=\{\.data\.(\w+)\}", text):
        assert (secret, key) == ("shared", "auth_token") or f"{key}=" in (KUBERNETES / "secrets.sh").read_text()


def _python(words: list[str]) -> None:
    program = (ROOT / words[1]).read_text()
    assert [word for word in words if word.startswith("--") and word.removeprefix("--") not in program] == []


def _nothing_of_ours(words: list[str]) -> None:
    """Its options are another project's."""


KNOWN = {
    "make": _make,
    "raylway": lambda words: _raylway(words[1:]),
    "ray": _ray,
    "kubectl": _kubectl,
    "docker": _docker,
    "export": _export,
    "python": _python,
} | dict.fromkeys(("pip", "curl", "mlflow"), _nothing_of_ours)
