"""PostgreSQL, `mlflow server` and a Ray cluster for the tests of this folder, started once; a proxy before the server for each test."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from tests.services.cluster import Cluster
from tests.services.postgres import Postgres, programs
from tests.services.proxy import FaultProxy
from tests.services.tracking_server import TrackingServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if programs() is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    if missing := [name for name in ("psycopg2", "flask_wtf") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} missing: pip install '.[services]' --constraint constraints.txt")
    started = Postgres()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[TrackingServer]:
    started = TrackingServer(tmp_path_factory.mktemp("server"), postgres)
    os.environ.update(started.login)  # for the clients of this process, and of the processes it starts
    yield started
    started.kill()
    for name in started.login:
        del os.environ[name]


@pytest.fixture
def proxy(server: TrackingServer) -> Iterator[FaultProxy]:
    made = FaultProxy(server.port)
    yield made
    made.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.stop()
