"""The team's tracking server on loopback, by infra/mlflow/start.sh: PostgreSQL, accounts, artifacts behind its proxy."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from tests.services.postgres import Postgres

INFRA = Path(__file__).parents[2] / "infra" / "mlflow"
USER = "trainer"
_ADMIN = "admin"
START_SECONDS = 120


def write_accounts(folder: Path, uri: str) -> Path:
    """infra's own configuration of accounts, but for where they are kept."""
    kept = re.sub("^database_uri = .*$", f"database_uri = {uri}", (INFRA / "basic_auth.ini").read_text(), flags=re.MULTILINE)
    (folder / "accounts.ini").write_text(kept)
    return folder / "accounts.ini"


class TrackingServer:
    """A server on a port of its own. It has an ordinary user, whose name and password are in `login`.

    `created=False`: its databases are there already. `passwords`: those of the server whose databases they were.
    """

    def __init__(
        self, folder: Path, postgres: Postgres, name: str = "mlflow", *, created: bool = True, passwords: dict[str, str] | None = None
    ) -> None:
        self._folder, self.artifacts, self._postgres, self._name = folder, folder / "artifacts", postgres, name
        self.passwords = passwords or {_ADMIN: secrets.token_hex(12), USER: secrets.token_hex(12)}
        if created:
            postgres.create(name), postgres.create(f"{name}_accounts")
        write_accounts(folder, postgres.address(f"{name}_accounts"))
        (folder / "postgres_password").write_text(postgres.password)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.upgrade()
        self.start()

    @property
    def login(self) -> dict[str, str]:
        """What the environment of a command must hold."""
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self.passwords[USER]}

    @property
    def environment(self) -> dict[str, str]:
        """What start.sh is told."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
        return clean | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_BACKEND_STORE_URI": self._postgres.address(self._name),
            "PGPASSWORD_FILE": str(self._folder / "postgres_password"),
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.artifacts),
            "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*",
            "MLFLOW_AUTH_CONFIG_PATH": str(self._folder / "accounts.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.passwords[_ADMIN],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "the same after each start",
            "MLFLOW_CLIENT_USERNAME": USER,
            "MLFLOW_CLIENT_PASSWORD": self.passwords[USER],
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(self.port),
            "MLFLOW_WORKERS": "1",
        }

    def upgrade(self) -> str:
        """Bring the databases up to date, and make the user; what was said."""
        command = [INFRA / "start.sh", "upgrade"]
        done = subprocess.run(command, cwd=self._folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self) -> None:
        """Start, and wait until it answers."""
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            [INFRA / "start.sh", "serve"], cwd=self._folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.2)

    def stop(self) -> int:
        """SIGTERM, as Docker and Kubernetes stop it; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=START_SECONDS)

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text()

    @property
    def family(self) -> list[int]:
        """The processes that it is made of."""
        return [each.pid for each in psutil.process_iter() if _group(each.pid) == self._process.pid]

    def kill(self) -> None:
        """End it at once, with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except (OSError, urllib.error.URLError):
            return False


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
