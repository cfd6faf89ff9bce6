"""The preStop of a worker's pod, on a real node: Ray is told that it goes, and the node leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.head import head, new_token
from tests.infra.manifests import INFRA

DRAIN = INFRA / "docker" / "drain.sh"


def _drained(seconds: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run([DRAIN, seconds], env=clean | {"PATH": path} | environment, capture_output=True, text=True, check=False)


def test_without_the_cluster_s_address_it_says_what_is_missing() -> None:
    done = _drained("3")
    assert done.returncode != 0
    assert "RAY_ADDRESS: the address of the cluster, which KubeRay sets" in done.stderr


@pytest.mark.slow
def test_a_node_without_work_leaves_at_once_when_it_is_told_to() -> None:
    with head(cpus=1, token=new_token()) as cluster:
        [raylet] = cluster.processes("raylet")
        done = _drained("120", RAY_ADDRESS=cluster.address, **cluster.environment)
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 60
        while raylet.is_running() and raylet.status() != "zombie":
            assert time.monotonic() < deadline, "it was told that it had 120 s, and has nothing to do"
            time.sleep(0.2)
