"""A cluster for the tests of this folder: more CPUs than the machine has, so that four trials go at once, and a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cli import ROOT
from tests.head import RAY, START_SECONDS, free_ports


class Cluster:
    """`ray start` of one node that offers four CPUs, whatever the machine has, in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rw-ray-", dir="/tmp"))  # the path of a socket may have a hundred letters
        port, client, metrics, agent = free_ports(4)
        options = [f"--port={port}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"]
        options += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.folder}", "--num-cpus=4", "--include-dashboard=false"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
        self.token = secrets.token_hex(32)
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [RAY, "start", "--head", "--block", "--object-store-memory=300000000", *options]
        log = (self.folder / "start.log").open("wb")
        self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.address = f"127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in (said := (self.folder / "start.log").read_bytes()):
            assert self._process.poll() is None, said.decode()
            assert time.monotonic() < deadline, said.decode()
            time.sleep(0.2)

    @property
    def login(self) -> dict[str, str]:
        """What the environment of a command must hold."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
