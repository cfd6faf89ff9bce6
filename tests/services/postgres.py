"""A PostgreSQL of the tests' own, by the programs of Debian's package `postgresql`: a Unix socket, a password, no port."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_USER = "raylway"
_SETTINGS = ("listen_addresses=", "fsync=off", "max_connections=60", "shared_buffers=32MB")


def programs() -> Path | None:
    """The folder of initdb, postgres and pg_dump; None where there is none. Debian keeps it out of PATH."""
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(3), reverse=True)
    found = shutil.which("initdb")
    return next((path for path in [*kept, *([Path(found).parent] if found else [])] if (path / "postgres").exists()), None)


class Postgres:
    """A server in a folder of its own; `stop` ends it and removes the folder."""

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="rw-pg-", dir="/tmp"))  # the path of a socket may have a hundred letters
        self._user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}  # it refuses to be run by root
        if self._user:
            shutil.chown(self.folder, "nobody")
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o444)
        self._run("initdb", "-D", self._data, "-U", _USER, "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8")
        password.unlink()
        settings = [word for setting in (*_SETTINGS, f"unix_socket_directories={self.folder}") for word in ("-c", setting)]
        log = (self.folder / "log").open("ab")
        command = [_bin() / "postgres", "-D", self._data, *settings]
        self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._user)
        deadline = time.monotonic() + 60
        while subprocess.run([_bin() / "pg_isready", "-h", self.folder], stdout=subprocess.DEVNULL).returncode:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def create(self, database: str) -> str:
        """Make a database; its address for SQLAlchemy, without the password: libpq reads that from PGPASSWORD."""
        self._run("createdb", "-h", str(self.folder), "-U", _USER, database)
        return self.address(database)

    def address(self, database: str) -> str:
        # postgresql:// alone would mean psycopg 3 (SQLAlchemy 2.1)
        return f"postgresql+psycopg2://{_USER}@/{database}?host={self.folder}"

    @property
    def environment(self) -> dict[str, str]:
        """How libpq's programs, which come first in its PATH, reach it."""
        path = f"{_bin()}:{os.environ.get('PATH', '')}"
        return {"PGHOST": str(self.folder), "PGUSER": _USER, "PGPASSWORD": self.password, "PATH": path}

    def dump(self, database: str) -> bytes:
        """All of a database as SQL."""
        return self._run("pg_dump", "-h", str(self.folder), "-U", _USER, database)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # "fast": it ends the sessions of who is still connected
        self._process.wait(timeout=60)
        shutil.rmtree(self.folder)

    @property
    def _data(self) -> str:
        return f"{self.folder}/data"

    def _run(self, program: str, *arguments: str) -> bytes:
        environment = os.environ | {"PGPASSWORD": self.password}
        done = subprocess.run([_bin() / program, *arguments], cwd=self.folder, capture_output=True, env=environment, **self._user)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def _bin() -> Path:
    found = programs()
    assert found
    return found
