"""The MLflow pages of a storage, served on this machine alone: nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from pipelines.errors import StorageError
from pipelines.screen import Screen

_HOST, _USUAL = "127.0.0.1", 5000
_SERVER = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes of 200 MB each, for nothing here (MLflow 3.17)
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def ui(storage: str, port: int | None, screen: Screen) -> NoReturn:
    """Become the server of the runs in `storage`. Without a port it is 5000, or a free one where that is taken.

    Raises StorageError where no runs are kept, or the port that was asked for is taken.
    """
    database = Path(storage).expanduser().resolve() / "mlflow.db"
    if not database.is_file():
        raise StorageError(f"{database}: no runs are kept there yet")
    if port is not None and not _free(port):
        raise StorageError(f"--port {port}: cannot be had, another process may have it; without --port a free one is found")
    chosen = port or _free(_USUAL) or _free(0)
    screen.say(f"http://{_HOST}:{chosen}/#/experiments?workflowType=machine_learning   (Ctrl-C ends it)")
    if chosen != _USUAL:
        screen.say(f"links that other commands print say port {_USUAL}; here it is {chosen}")
    os.environ.update({name: os.environ.get(name, value) for name, value in _SERVER.items()})
    arguments = ["--backend-store-uri", f"sqlite:///{database}", "--host", _HOST, "--port", str(chosen), "--workers", "1"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments])


def _free(port: int) -> int:
    """The port (any, for 0) if a server can have it, else 0."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else one that was in use a moment ago counts as taken
        try:
            taken.bind((_HOST, port))
        except (OSError, OverflowError):
            return 0
        return int(taken.getsockname()[1])
