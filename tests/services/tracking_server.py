"""`mlflow server` on loopback as a team runs it: PostgreSQL, basic auth, artifacts behind its proxy."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.services.postgres import Postgres

USER = "trainer"
_ADMIN = "admin"


class TrackingServer:
    """A server on a port of its own. It has an ordinary user, whose name and password are in `login`."""

    def __init__(self, folder: Path, postgres: Postgres, name: str = "mlflow") -> None:
        self._folder, self.artifacts = folder, folder / "artifacts"
        self.passwords = {_ADMIN: secrets.token_hex(12), USER: secrets.token_hex(12)}
        self._backend, accounts = postgres.create(name), postgres.create(f"{name}_accounts")
        (folder / "accounts.ini").write_text(
            f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = {accounts}\nadmin_username = {_ADMIN}\nauth_cache_ttl_seconds = 60\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()
        self.ask("POST", "mlflow/users/create", {"username": USER, "password": self.passwords[USER]})

    @property
    def login(self) -> dict[str, str]:
        """What the environment of a command must hold."""
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self.passwords[USER]}

    def start(self) -> None:
        """Start, and wait until it answers."""
        environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": self._backend,  # as an argument everyone on the machine could read it
            "MLFLOW_AUTH_CONFIG_PATH": str(self._folder / "accounts.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.passwords[_ADMIN],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "the same after each start",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        options = ["--app-name", "basic-auth", "--artifacts-destination", str(self.artifacts), "--workers", "1"]
        options += ["--host", "127.0.0.1", "--port", str(self.port)]
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=self._folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """End it at once, with all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, method: str, path: str, told: dict[str, Any] | None = None) -> Any:
        """An answer of the REST interface to the administrator."""
        login = base64.b64encode(f"{_ADMIN}:{self.passwords[_ADMIN]}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/{path}", json.dumps(told).encode() if told is not None else None, headers, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except (OSError, urllib.error.URLError):
            return False
