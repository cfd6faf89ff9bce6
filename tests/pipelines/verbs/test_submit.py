"""The state of a job in words and as JSON, and the exit code of `submit`."""

from __future__ import annotations

import pytest

from cluster.jobs import Job
from pipelines.verbs.submit import ID, code_of, ended, job_json, newest


def job(id: str = "mine", status: str = "FAILED", exit_code: int | None = None, **more) -> Job:
    values = {"command": "python -m pipelines train cnn", "message": "", "metadata": {}, "began": 1.0, "ended": 2.0}
    return Job(id=id, status=status, exit_code=exit_code, **(values | more))


@pytest.mark.parametrize(
    ("status", "exit_code", "code", "sentence"),
    [
        ("SUCCEEDED", 0, 0, "finished"),
        ("PENDING", None, 0, "pending"),
        ("RUNNING", None, 0, "running"),
        ("STOPPED", None, 130, "stopped"),
        ("FAILED", 2, 2, "failed with exit code 2"),
        ("FAILED", 14, 14, "failed with exit code 14"),
        ("FAILED", 130, 130, "failed with exit code 130"),
        ("FAILED", -9, 12, "its process was killed by signal 9"),
        ("FAILED", 137, 12, "its process was killed by signal 9"),
        ("FAILED", None, 12, "failed: Ray does not say why"),
    ],
)
def test_the_exit_code_is_the_jobs_own_or_says_that_it_had_none(status, exit_code, code, sentence):
    one = job(status=status, exit_code=exit_code)
    assert ended(one) == sentence
    assert code_of({**job_json(one), "detached": False}) == code
    assert code_of({**job_json(one), "detached": True}) == 130


def test_why_ray_could_not_start_a_job_is_its_first_line_without_colours():
    message = "\n\x1b[36mruntime_env setup failed: Failed to download gcs://me:hunter2@x\x1b[39m\nTraceback …"
    assert ended(job(message=message)) == "failed: runtime_env setup failed: Failed to download gcs://me:***@x"


def test_of_several_goes_at_the_same_the_last_counts():
    every = [job("mine"), job("mine-2", metadata={ID: "mine"}), job("mine-3", metadata={ID: "mine-3"}), job("other")]
    found = newest(every, "mine")
    assert found
    assert found.id == "mine-2"
    assert newest(every, "nobody") is None


def test_a_password_in_the_command_of_another_is_not_repeated():
    assert "hunter2" not in job_json(job(command="python train.py --password hunter2"))["command"]
