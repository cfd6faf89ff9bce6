"""The embedded MLflow database is there whole or not at all."""

from __future__ import annotations

from multiprocessing.process import BaseProcess

from tests import forked
from tests.cli import until


def _connect(uri: str) -> None:
    from pipelines.tracking.client import connect

    assert len(connect(uri).search_experiments()) == 1


def connecting(uri: str) -> BaseProcess:
    process = forked.context().Process(target=_connect, args=(uri,))
    process.start()
    return process


def test_killed_while_it_is_made_the_next_command_makes_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = connecting(uri)

    def begun() -> bool:  # without SQLite's own journals, which come and go
        assert first.exitcode is None
        return any(path.stat().st_size > 300_000 for path in tmp_path.glob(".mlflow.db.????????"))

    until(begun)
    first.kill()
    first.join()
    assert not (tmp_path / "mlflow.db").exists()
    two = [connecting(uri) for _ in range(2)]  # at once, and none spoils it for the other
    for each in two:
        each.join(timeout=100)
        assert each.exitcode == 0
    assert (tmp_path / "mlflow.db").exists()
