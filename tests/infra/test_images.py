"""The images hold what is pinned, run as nobody in particular, and the stack of one machine listens on loopback only."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.manifests import INFRA, ROOT
from tests.infra.policies import pinned

DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text()
SCRIPTS = tuple(sorted(path.relative_to(INFRA).as_posix() for path in INFRA.rglob("*.sh")))
GPUS = yaml.safe_load((INFRA / "docker" / "compose.gpu.yaml").read_text())
COMPOSE = yaml.safe_load((INFRA / "docker" / "compose.yaml").read_text())


def tool(name: str) -> str:
    """The path of a checker, beside this Python or elsewhere. Skips the test where there is none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (make infra)")
    return found


def test_torch_is_the_one_that_is_pinned() -> None:
    assert re.findall(r"^ARG TORCH=(\S+)$", DOCKERFILE, re.MULTILINE) == [pinned("torch")]


def test_python_is_the_one_that_the_project_asks_for() -> None:
    assert re.findall(r"^ARG PYTHON=(\d+\.\d+)\.\d+$", DOCKERFILE, re.MULTILINE) == ["3.11"]
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()


def test_what_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert len(copied) > 10
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert [path for path in copied if not any(Path(path).is_relative_to(each) for each in sent)] == []


def test_every_final_image_runs_as_a_user() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(final) == 2
    assert all("USER 1000:1000" in stage for stage in final)


def test_the_server_has_only_what_is_pinned() -> None:
    for line in (INFRA / "mlflow" / "requirements.txt").read_text().split():
        assert pinned(line.partition("[")[0])


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([tool("hadolint"), str(INFRA / "docker" / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    done = subprocess.run([tool("shellcheck"), str(INFRA / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def loose(stack: dict[str, Any]) -> list[str]:
    """What a stack on one machine may not do."""
    problems = []
    for name, service in stack["services"].items():
        problems += [
            f"{name}: port {port} is not on loopback" for port in service.get("ports", ()) if not str(port).startswith("127.0.0.1:")
        ]
        image = service.get("image", "")
        problems += [f"{name}: image {image} is not pinned"] if ":" not in image or image.endswith(":latest") else []
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN", key) and not str(value).startswith("/run/secrets/"):
                problems.append(f"{name}: {key} is written down")
    return problems


def test_the_stack_of_one_machine_is_closed() -> None:
    assert loose(COMPOSE) == []


def test_with_gpus_it_only_differs_in_the_image_and_the_devices() -> None:
    assert GPUS["services"].keys() <= COMPOSE["services"].keys()
    assert loose(GPUS) == []
    assert {key for service in GPUS["services"].values() for key in service} == {"image", "build", "deploy"}


def test_each_hole_in_it_is_found() -> None:
    stack = copy.deepcopy(COMPOSE)
    stack["services"]["ray-head"]["ports"] = ["8265:8265"]
    stack["services"]["grafana"]["image"] = "grafana/grafana:latest"
    stack["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"] = "sesame"
    assert len(loose(stack)) == 3


def rendered(folder: Path) -> dict[str, Any]:
    """What `docker-compose config` makes of both files."""
    if not shutil.which("docker-compose"):
        pytest.skip("docker-compose is not installed: what it makes of the two files is not looked at")
    for name in ("compose.yaml", "compose.gpu.yaml"):
        text = (INFRA / "docker" / name).read_text()
        (folder / name).write_text(text.replace("name: raylway\n", ""))  # which Debian's docker-compose 1.29 does not know yet
    command = ["docker-compose", "--project-directory", INFRA / "docker", "-f", folder / "compose.yaml", "-f", folder / "compose.gpu.yaml"]
    done = subprocess.run([*command, "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_what_compose_makes_of_both_files_is_closed_and_gives_the_gpus_to_the_worker(tmp_path: Path) -> None:
    stack = rendered(tmp_path)
    assert loose(stack) == []
    assert stack["services"].keys() == COMPOSE["services"].keys()
    with_gpus = {name for name, service in stack["services"].items() if "devices" in str(service.get("deploy"))}
    assert with_gpus == {"ray-worker"}
    assert {service["image"] for name, service in stack["services"].items() if name.startswith("ray-")} == {"raylway:0.1.0-cuda"}
    assert stack["services"]["mlflow-upgrade"].get("ports", []) == []


def test_every_secret_of_the_stack_is_made_by_the_script() -> None:
    script = (INFRA / "docker" / "secrets.sh").read_text()
    assert all(name in script for name in COMPOSE["secrets"])
