"""What several tests share: one storage for prepared data, and runs of several worker processes, each made once a session."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from pipelines import process

pytest_plugins = ["tests.time_limits"]
process.collect_rarely()
torch.set_num_threads(1)  # two processes of tests with two threads each on two cores wait for each other: some tests took ten times as long
LONGEST = (
    "tests/test_on_ray.py",
    "tests/workloads/test_contract.py",
    "tests/test_sweep.py",
    "tests/pipelines/training/test_sharding.py",
    "tests/test_survival.py",
    "tests/test_security.py",
    "tests/pipelines/verbs/test_promote.py",
    "tests/pipelines/test_api.py",
)
"""Files that take longest, in that order: a process that begins one of them when the others are done keeps all waiting."""
_imported = [0]
hypothesis.settings.register_profile("raylway", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("raylway")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is written into the home folder of who runs the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Python looks for cyclic garbage among new objects only, once many modules are imported: a tenth of the tests' time otherwise."""
    process.collect_rarely()  # a training sets it back
    if len(sys.modules) > _imported[-1] + 300:
        _imported.append(len(sys.modules))
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def team_run(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """`team_run(recipe, world_size, *settings)`: a short run of that many workers and its resumed twin (tests.teams.TeamRun)."""
    from tests import teams

    scratch = tmp_path_factory.mktemp("teams")
    return functools.cache(
        lambda recipe, world_size, *settings: teams.TeamRun(
            recipe, world_size, storage, scratch / "-".join([recipe, str(world_size), *settings]), settings
        )
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it, to be copied: making one takes seconds."""
    from pipelines.tracking.client import connect

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A storage with an MLflow database, shared by tests that write runs of their own names."""
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def place(tmp_path: Path, empty_database: Path) -> Path:
    """A folder to run commands in, whose storage `runs` has an MLflow database with nothing in it."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    return tmp_path
