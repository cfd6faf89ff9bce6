"""Run a module in a fresh process and read the JSON of its last line: what a process did before must not help or hinder the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.session import ALLOCATOR

ROOT = Path(__file__).resolve().parents[2]
WORKER_ENVIRONMENT = ALLOCATOR
"""What Ray workers of ours are given on top of the plain environment."""
_STEERING = ("MALLOC_", "MLFLOW_", "RAY_", "OMP_", "MKL_")


def run_module(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that `python -m module arguments…` prints as its last line.

    It runs from the repository's root without the variables that steer the allocator, threads, Ray or MLflow, but with those of
    `environment`. Raises RuntimeError with the end of its stderr if it fails.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith(_STEERING)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=plain | dict(environment or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
