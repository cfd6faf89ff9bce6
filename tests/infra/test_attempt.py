"""A RayJob's command: what another cluster would not cure is stopped, so that KubeRay does not begin it again; all else ends as it is."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time

import pytest

from pipelines import errors
from tests.head import head, new_token
from tests.infra.manifests import INFRA, ROOT

ATTEMPT = INFRA / "docker" / "attempt.py"


def _attempted(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ATTEMPT, "sh", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 2", 2), ("exit 12", 12), ("kill -9 $$", 137)])
def test_outside_of_a_job_it_ends_as_its_command(command: str, code: int) -> None:
    done = _attempted(command)
    assert (done.returncode, done.stderr) == (code, "")


def test_it_knows_the_exit_codes() -> None:
    final = runpy.run_path(str(ATTEMPT))["FINAL"].keys()
    assert final == {errors.RECIPE, 3, errors.VERIFICATION, errors.WORKLOAD, errors.MEMORY, errors.DATA, errors.DIVERGED}
    assert not {0, 1, errors.CLUSTER, errors.INTERRUPTED} & final


@pytest.mark.slow
def test_in_a_job_a_wrong_recipe_is_stopped_and_a_lost_cluster_fails() -> None:
    token = new_token()
    from ray.job_submission import JobSubmissionClient

    with head(cpus=1, token=token) as cluster:
        # not by RAY_AUTH_MODE: Ray reads it once in a process, which other tests share
        client = JobSubmissionClient(cluster.dashboard, headers={"Authorization": f"Bearer {token}"})

        def ended(command: str) -> tuple[str, str]:
            environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
            job = client.submit_job(entrypoint=f"{sys.executable} {ATTEMPT} {command}", runtime_env=environment)
            deadline = time.monotonic() + 120
            while not client.get_job_status(job).is_terminal():
                assert time.monotonic() < deadline, client.get_job_logs(job)
                time.sleep(0.2)
            return client.get_job_status(job).value, client.get_job_logs(job)

        status, log = ended("python -m pipelines train cnn model.no_such=1")
        assert status == "STOPPED"
        assert "model.no_such: no such setting" in log
        assert "exit code 2 (the recipe or the command is wrong): it would come again" in log
        assert ended("sh -c 'exit 12'")[0] == "FAILED"
        assert ended("sh -c 'kill -9 $$'")[0] == "FAILED"
        assert ended("true")[0] == "SUCCEEDED"
