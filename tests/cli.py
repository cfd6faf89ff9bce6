"""Run the command line as a user does: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
ROOT = Path(__file__).parents[1]
CPU_QUICK = ("scale.workers=0", "scale.threads=1")
"""In the process itself, on one thread: no Ray to wait for."""


def start(arguments: Sequence[str], *, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`raylway …` in `cwd`, running."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(something: Callable[[], R], process: subprocess.Popen[str] | None = None, *, seconds: float = 240) -> R:
    """What `something` gives once it is true; waited for no longer than the process lives that is to bring it about."""
    deadline = time.monotonic() + seconds
    while not (found := something()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def finish(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    """(exit code, the JSON of the last line of stdout or None, stderr) of a started command."""
    out, err = process.communicate(timeout=300)
    lines = out.strip().splitlines()
    return process.returncode, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None, err


def raylway(*arguments: str, cwd: Path, **environment: str) -> tuple[int, Any, str]:
    """`raylway …` from start to end."""
    return finish(start(arguments, cwd=cwd, **environment))
