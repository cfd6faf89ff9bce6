"""Every test has a time limit; when it strikes, the stacks of the test and of its processes are printed, Ray's among them.

pytest-timeout interrupts the test by a signal. A test that hangs where no signal is heard (a call into C that never returns) is ended a
minute later by faulthandler, with its process.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import time
from collections.abc import Generator

import psutil
import pytest

SLOW_SECONDS = 600
_GRACE_SECONDS = 60
_MOST_PROCESSES = 24
_STACK_SECONDS = 40
_stderr: list[int] = []
"""The process's own standard error: pytest captures the file descriptor 2 while it loads this and while a test runs."""


def pytest_configure() -> None:
    _stderr.append(os.dup(2))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("timeout") and (item.get_closest_marker("slow") or item.get_closest_marker("services")):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    seconds = _limit(item)
    if seconds:
        faulthandler.dump_traceback_later(seconds + _GRACE_SECONDS, exit=True, file=_stderr[-1])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo and "from pytest-timeout" in str(call.excinfo.value) and hasattr(report.longrepr, "addsection"):
        report.longrepr.addsection("stacks of the processes that were running", stacks())
    return report


def stacks() -> str:
    """The Python stacks of this process, of its children and of Ray's workers on this machine, as py-spy sees them."""
    own = psutil.Process()
    children = sorted((process for process in own.children(recursive=True) if _is_python(process)), key=lambda child: not _of_ray(child))
    others = [process for process in psutil.process_iter() if _of_ray(process)]
    chosen = list(dict.fromkeys(process.pid for process in [own, *children, *others]))
    deadline = time.monotonic() + _STACK_SECONDS
    return "\n".join(_stack(pid) for pid in chosen[:_MOST_PROCESSES] if time.monotonic() < deadline)


def _limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker and marker.args else item.config.getoption("timeout") or item.config.getini("timeout") or 0)


def _of_ray(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::")
    except psutil.Error:
        return False


def _is_python(process: psutil.Process) -> bool:
    try:
        return process.name().startswith(("ray::", "python", "pytest")) or "python" in process.exe()
    except psutil.Error:
        return False


def _stack(pid: int) -> str:
    """One process's stack, or why there is none: it has ended, or the system lets nobody look (ptrace)."""
    try:
        command = ["py-spy", "dump", "--nonblocking", "--pid", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env={**os.environ, "PATH": _path()})
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"process {pid}: no stack: {error}"
    return done.stdout or f"process {pid}: no stack: {done.stderr.strip()}"


def _path() -> str:
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
