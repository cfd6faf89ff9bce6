"""The embedded MLflow database is there whole or not at all."""

from __future__ import annotations

import subprocess
import sys

from tests.cli import ROOT, until

CONNECT = "import sys; from pipelines.tracking.client import connect; print(len(connect(sys.argv[1]).search_experiments()))"


def connecting(uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CONNECT, uri], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_while_it_is_made_the_next_command_makes_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = connecting(uri)
    until(
        lambda: any(path.stat().st_size > 300_000 for path in tmp_path.glob(".mlflow.db.????????")), first
    )  # without SQLite's own journals, which come and go
    first.kill()
    first.wait()
    two = [connecting(uri) for _ in range(2)]  # at once, and none spoils it for the other
    for each in two:
        out, err = each.communicate(timeout=100)
        assert (each.returncode, out.strip()) == (0, "1"), err[-2000:]
    assert (tmp_path / "mlflow.db").exists()
