"""A test that hangs ends, and says where: its own stack, and those of the processes that it waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import until
from tests.time_limits import stacks

ROOT = Path(__file__).parents[1]
HANGING = """
import subprocess, sys, time
import pytest

def the_place_that_hangs():
    time.sleep(60)

@pytest.mark.timeout(3)
def test_that_hangs():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        the_place_that_hangs()
    finally:
        child.kill()
"""


def run(tmp_path: Path, text: str) -> str:
    (tmp_path / "test_hanging.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.time_limits", "-p", "no:cacheprovider", "-p", "no:xdist", "test_hanging.py"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_a_test_that_hangs_fails_with_its_stack_and_that_of_the_process_it_waits_for(tmp_path):
    shown = run(tmp_path, HANGING)
    assert "Timeout (>3.0s)" in shown
    assert "the_place_that_hangs" in shown
    assert "stacks of the processes that were running" in shown


@pytest.mark.long
def test_the_stacks_of_rays_workers_are_among_them(tmp_path):
    import ray

    @ray.remote(num_cpus=1)
    def the_task_that_hangs(started):
        started.touch()
        time.sleep(600)

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        the_task_that_hangs.remote(tmp_path / "started")
        until((tmp_path / "started").exists)
        assert "the_task_that_hangs" in stacks()
    finally:
        ray.shutdown()
