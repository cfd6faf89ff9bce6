"""A real cluster of one head node (and more), on free ports and in a folder of its own, as `ray start` makes it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 120


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now, each another."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


class Head:
    """A running cluster: `address` of its control plane, `dashboard` of its jobs, `token` that opens both."""

    def __init__(self, *, cpus: int = 2, token: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rw-"))  # short: a socket's path is at most about 100 characters
        self.token, self._groups = token, []
        port, dashboard, client = free_ports(3)
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self.environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token" if token else "disabled"}
        self.environment |= {"RAY_AUTH_TOKEN": token} if token else {}
        where = ["--port", str(port), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
        self._start("--head", *where, "--dashboard-host=127.0.0.1", "--include-dashboard=true", "--temp-dir", str(self.folder), cpus=cpus)
        self._await()

    def join(self, *, cpus: int = 1, wrap: Sequence[str] = (), host: str = "127.0.0.1") -> None:
        """Add a node of the address `host`, started by `wrap` where that is given, and wait until it has joined."""
        self._start("--address", self.address, cpus=cpus, wrap=wrap, host=host)
        log, deadline = self.folder / f"start-{len(self._groups) - 1}.log", time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            assert self._groups[-1].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)

    def processes(self, name: str) -> list[psutil.Process]:
        """The cluster's processes of that name (gcs_server, raylet)."""
        everyone = psutil.process_iter(["name", "cmdline"])
        return [each for each in everyone if each.info["name"] == name and str(self.folder) in " ".join(each.info["cmdline"] or ())]

    def look_away(self) -> None:
        """Let `ray start` not notice from now on when one of its processes dies: it would end the others."""
        for group in self._groups:
            group.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        """End every process of the cluster, and only those."""
        children = [child for group in self._groups for child in _family(group.pid)]
        for process in children:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group.pid, signal.SIGKILL)
            group.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *arguments: str, cpus: int, wrap: Sequence[str] = (), host: str = "127.0.0.1") -> None:
        ports = ["--dashboard-agent-listen-port", str(free_ports(1)[0]), "--metrics-export-port", str(free_ports(1)[0])]
        sizes = ["--num-cpus", str(cpus), "--num-gpus=0", "--object-store-memory", str(200 << 20)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
        path = f"{Path(sys.executable).parent}:{clean.get('PATH', '')}"  # a job's `python` is the first on the node's path
        log = (self.folder / f"start-{len(self._groups)}.log").open("ab")
        self._groups.append(
            subprocess.Popen(
                [*wrap, RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={host}", *ports, *sizes, *arguments],
                env=clean | self.environment | {"PATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )

    def _await(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        header = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=header), timeout=10)
                return
            assert time.monotonic() < deadline, (self.folder / "start-0.log").read_text()
            time.sleep(0.3)


@contextlib.contextmanager
def head(*, cpus: int = 2, token: str | None = None) -> Iterator[Head]:
    """A cluster for the `with` block."""
    started = Head(cpus=cpus, token=token)
    try:
        yield started
    finally:
        started.stop()


def new_token() -> str:
    return secrets.token_hex(16)


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []
