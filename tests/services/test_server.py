"""The team's server by its own scripts: started, stopped and started again, upgraded by many at once, backed up and restored elsewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.tracking.client import connect
from tests.services.postgres import Postgres
from tests.services.tracking_server import INFRA, TrackingServer, write_accounts

pytestmark = pytest.mark.services


def _recorded(server: TrackingServer, experiment: str) -> str:
    """A finished run with a metric and an artifact, made by the server's ordinary user."""
    client = connect(server.uri)
    run = client.create_run(client.create_experiment(experiment))
    client.log_metric(run.info.run_id, "loss", 0.25)
    client.log_text(run.info.run_id, "kept", "note.txt")
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def _known(server: TrackingServer, run_id: str) -> tuple[str, float]:
    run = connect(server.uri).get_run(run_id)
    return run.info.status, run.data.metrics["loss"]


def test_it_stops_by_sigterm_and_has_everything_when_it_is_started_again(server: TrackingServer) -> None:
    run_id = _recorded(server, "before-the-stop")
    family = server.family
    assert len(family) > 1, "a parent and its workers"
    assert server.stop() == 0
    assert not set(server.family) & set(family), "nothing is left behind"
    server.start()
    assert _known(server, run_id) == ("FINISHED", 0.25)
    assert connect(server.uri).list_artifacts(run_id)[0].path == "note.txt"


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(server: TrackingServer, postgres: Postgres) -> None:
    names = ("mlflow", "mlflow_accounts")
    before = [_rows(postgres.dump(name)) for name in names]
    server.upgrade()
    assert [_rows(postgres.dump(name)) for name in names] == before


def test_replicas_that_upgrade_new_databases_at_once_do_it_one_after_the_other(
    server: TrackingServer, postgres: Postgres, tmp_path: Path
) -> None:
    """`mlflow db upgrade` alone fails for one of two (MLflow 3.17)."""
    runs, accounts = postgres.create("crowd"), postgres.create("crowd_accounts")
    told = server.environment | {"MLFLOW_BACKEND_STORE_URI": runs, "MLFLOW_AUTH_CONFIG_PATH": str(write_accounts(tmp_path, accounts))}
    crowd = [
        subprocess.Popen([INFRA / "start.sh", "upgrade"], env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0], said


def test_an_ordinary_user_may_not_make_users(server: TrackingServer) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    with pytest.raises(MlflowException):
        get_app_client("basic-auth", tracking_uri=server.uri).create_user("another", "long-enough-password")


@pytest.fixture(scope="module")
def elsewhere(postgres: Postgres) -> Iterator[Postgres]:
    """Another PostgreSQL, as after the loss of the first."""
    started = Postgres()
    yield started
    started.stop()


def test_a_backup_is_restored_elsewhere_and_served_from_there(
    server: TrackingServer, postgres: Postgres, elsewhere: Postgres, tmp_path: Path
) -> None:
    run_id = _recorded(server, "before-the-backup")
    backup = _script("backup.sh", tmp_path, postgres)
    assert backup.returncode == 0, backup.stderr
    folder = Path(backup.stdout.strip())
    assert {path.name for path in folder.iterdir()} == {"mlflow.dump", "mlflow_accounts.dump", "SHA256SUMS"}
    for name in ("mlflow", "mlflow_accounts"):
        elsewhere.create(name)
    restored = _script("restore.sh", folder, elsewhere)
    assert restored.returncode == 0, restored.stderr
    for name in ("mlflow", "mlflow_accounts"):
        assert _rows(elsewhere.dump(name)) == _rows(postgres.dump(name))
    again = TrackingServer(tmp_path, elsewhere, created=False, passwords=server.passwords)
    try:
        assert _known(again, run_id) == ("FINISHED", 0.25)
    finally:
        assert again.stop() == 0


def test_nothing_is_restored_over_what_is_there_nor_from_a_damaged_backup(
    server: TrackingServer, postgres: Postgres, elsewhere: Postgres, tmp_path: Path
) -> None:
    folder = Path(_script("backup.sh", tmp_path, postgres).stdout.strip())
    before = _rows(postgres.dump("mlflow"))
    refused = _script("restore.sh", folder, postgres)
    assert refused.returncode != 0
    assert "tables already; restore into an empty database" in refused.stderr
    assert _rows(postgres.dump("mlflow")) == before
    dump = folder / "mlflow.dump"
    dump.write_bytes(dump.read_bytes()[:-1])
    damaged = _script("restore.sh", folder, elsewhere)
    assert damaged.returncode != 0
    assert "mlflow.dump: FAILED" in damaged.stdout


def _script(name: str, folder: Path, postgres: Postgres) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INFRA / name, folder], env=postgres.environment, capture_output=True, text=True, check=False)


def _rows(dump: bytes) -> dict[bytes, list[bytes]]:
    """The rows of each table, in an order of their own. (PostgreSQL words CHECK constraints anew when it reads them.)"""
    tables = re.findall(rb"^COPY (\S+) .*? FROM stdin;\n(.*?)^\\\.$", dump, re.MULTILINE | re.DOTALL)
    assert len(tables) > 5
    return {name: sorted(rows.splitlines()) for name, rows in tables}
