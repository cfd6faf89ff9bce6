"""The files of `ray up` are those that Ray itself accepts, and open nothing."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import pytest
import yaml

from tests.infra.manifests import INFRA

FILES = tuple(sorted(path.name for path in (INFRA / "ray-up").glob("*.yaml")))


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((INFRA / "ray-up" / name).read_text())


def accepted(given: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(given)))


def test_there_are_three() -> None:
    assert FILES == ("aws.yaml", "gcp.yaml", "onprem.yaml")


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    accepted(read(name))


def test_ray_refuses_a_word_that_it_does_not_know() -> None:
    import jsonschema

    with pytest.raises((jsonschema.ValidationError, ValueError, RuntimeError)):
        accepted(read("aws.yaml") | {"idle_timeout": 3})


def starts(given: dict[str, Any]) -> list[str]:
    """The commands that start Ray on a head and on a worker."""
    both = (given["head_start_ray_commands"], given["worker_start_ray_commands"])
    assert [commands[0] for commands in both] == ["ray stop", "ray stop"], "`ray up` is given again to change a cluster that runs"
    return [command for commands in both for command in commands[1:]]


def parsed(command: str) -> None:
    """Ray's own parser reads the options of `ray start`, which `validate_config` takes for any text; nothing is started."""
    from ray.scripts.scripts import start

    words = shlex.split(command)
    assert words[:2] == ["ray", "start"]
    start.make_context("start", words[2:])


@pytest.mark.parametrize("name", FILES)
def test_rays_command_line_knows_how_it_is_started(name: str) -> None:
    assert starts(read(name))
    for command in starts(read(name)):
        parsed(command)


def test_a_start_that_rays_command_line_refuses_is_found() -> None:
    import click

    with pytest.raises(click.UsageError, match="--block"):
        parsed("ray start --head --block=false")


def opened(given: dict[str, Any]) -> list[str]:
    """What would let strangers in."""
    starts = " ".join(given["head_start_ray_commands"])
    problems = [] if "--dashboard-host=127.0.0.1" in starts else ["the dashboard listens to all"]
    options = given["docker"]["run_options"]
    problems += [] if "--env=RAY_AUTH_MODE=token" in options else ["no token is asked for"]
    problems += ["a token is written down" for option in options if option.startswith("--env=RAY_AUTH_TOKEN=")]
    if given["provider"]["type"] != "local" and not given["provider"].get("use_internal_ips"):
        problems.append("machines have public addresses")
    return problems


@pytest.mark.parametrize("name", FILES)
def test_nobody_comes_in_from_outside(name: str) -> None:
    assert opened(read(name)) == []


def test_each_way_in_is_found() -> None:
    given = read("gcp.yaml")
    given["head_start_ray_commands"] = ["ray start --head --dashboard-host=0.0.0.0"]
    given["docker"]["run_options"] = ["--env=RAY_AUTH_TOKEN=sesame"]
    given["provider"]["use_internal_ips"] = False
    assert len(opened(given)) == 4
