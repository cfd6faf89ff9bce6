"""Run the command line as a user does, in a process of its own; one that uses no Ray is spared its imports (tests.forked)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests import forked
from tests.forked import ROOT

__all__ = ["ROOT"]
R = TypeVar("R")
CPU_QUICK = ("scale.workers=0", "scale.threads=1")
"""In the process itself, on one thread: no Ray to wait for."""


def start(arguments: Sequence[str], *, cwd: Path, fresh: bool = False, **environment: str) -> subprocess.Popen[str] | forked.Command:
    """`raylway …` in `cwd`, running; `fresh` in an interpreter of its own, which imports all anew, as it must for Ray's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
    env = clean | {"PYTHONPATH": str(ROOT)} | environment
    if not fresh and not any(name.startswith("RAY_") for name in environment):
        return forked.Command("pipelines", arguments, cwd=cwd, env=env)
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(something: Callable[[], R], process: subprocess.Popen[str] | forked.Command | None = None, *, seconds: float = 240) -> R:
    """What `something` gives once it is true; waited for no longer than the process lives that is to bring it about."""
    deadline = time.monotonic() + seconds
    while not (found := something()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def finish(process: subprocess.Popen[str] | forked.Command) -> tuple[int, Any, str]:
    """(exit code, the JSON of the last line of stdout or None, stderr) of a started command."""
    out, err = process.communicate(timeout=300)
    lines = out.strip().splitlines()
    return process.returncode, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None, err


def raylway(*arguments: str, cwd: Path, fresh: bool = False, **environment: str) -> tuple[int, Any, str]:
    """`raylway …` from start to end."""
    return finish(start(arguments, cwd=cwd, fresh=fresh, **environment))
