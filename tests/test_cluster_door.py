"""The way in: a real cluster that asks for a token, one that is not there, one that is full, and one whose control plane dies."""

from __future__ import annotations

import contextlib
import os
import re
import time

import psutil
import pytest

from tests.cli import finish, raylway, start
from tests.head import head, new_token

pytestmark = pytest.mark.slow
SHORT = ("train.steps=40", "scale.workers=1", "scale.cpus=1", "scale.threads=1")


@pytest.fixture(scope="module")
def cluster():
    with head(cpus=2, token=new_token()) as running:
        yield running


@pytest.fixture
def entered(cluster, tmp_path):
    """What a process needs to be let in; a home of its own, so that no token is found by chance."""
    return {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token, "HOME": str(tmp_path)}


def test_a_run_on_a_cluster_with_a_token_ends_well(cluster, entered, tmp_path):
    code, result, err = raylway("train", "cnn", *SHORT, "--json", cwd=tmp_path, **entered)
    assert code == 0, err
    assert (result["status"], result["steps"]) == ("finished", 40)
    assert cluster.token not in err
    logs = [path.read_text() for path in tmp_path.rglob("*.log")]
    assert not [log for log in logs if cluster.token in log]


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ({}, "the cluster asks for a token, and none was sent; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE=token, but there is no token; set"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong-b4e1"}, "the cluster does not accept the token of RAY_AUTH_TOKEN"),
    ],
)
def test_who_has_not_the_token_is_told_what_to_set(cluster, tmp_path, token, sentence):
    code, _, err = raylway("train", "cnn", *SHORT, cwd=tmp_path, HOME=str(tmp_path), RAY_ADDRESS=cluster.address, **token)
    assert code == 12
    assert sentence in err
    assert "wrong-b4e1" not in err


def test_more_than_the_cluster_can_have_is_refused_with_the_arithmetic(entered, tmp_path):
    code, _, err = raylway("train", "cnn", "scale.workers=3", "scale.gpus=1", "scale.cpus=1", cwd=tmp_path, **entered)
    assert code == 12
    assert "scale.workers=3 x 1 CPUs = 3, but the cluster has 2 CPUs" in err, err


def test_a_run_waits_for_room_and_says_who_holds_it(entered, tmp_path):
    holder = start(("train", "cnn", "name=holder", "train.steps=100000000", "scale.workers=1", "scale.cpus=2"), cwd=tmp_path, **entered)
    try:
        journal = tmp_path / "runs" / "cnn" / "holder" / "journal.jsonl"
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size):
            assert holder.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        waiter = start(("train", "cnn", "name=waiter", *SHORT, "--json"), cwd=tmp_path, **entered)
        told = r"waiting for 1 worker x 1 CPU: 0 of 2 CPUs free; 2 CPUs held by job \w+ \(python.* -m pipelines train cnn name=holder"
        seen = ""
        while "waiting for" not in seen and (line := waiter.stderr.readline()):
            seen += line
        assert re.search(told, seen), seen
    finally:
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder.pid, 2)
            time.sleep(1)
        holder.communicate(timeout=120)
    code, result, err = finish(waiter)
    assert (code, result["status"]) == (0, "finished"), err


def test_an_address_where_nobody_answers_is_told_and_does_not_hang(tmp_path):
    code, _, err = raylway("train", "cnn", *SHORT, cwd=tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert code == 12
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray control plane answers there" in err


def test_the_control_plane_lost_in_mid_run_is_told_and_the_same_command_goes_on(tmp_path):
    command = ("train", "cnn", "name=survivor", "train.steps=20000", "train.batch=8", "train.checkpoint_every=100", "--json")
    running = start((*command, "scale.workers=1"), cwd=tmp_path)
    checkpoints = tmp_path / "runs" / "cnn" / "survivor" / "checkpoints"
    deadline = time.monotonic() + 150
    while not list(checkpoints.glob("step-*")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [control] = [each for each in psutil.Process(running.pid).children(recursive=True) if each.name() == "gcs_server"]
    control.kill()
    code, result, err = finish(running)
    assert code == 12, err
    assert "the cluster's control plane at" in err
    assert "resume with: raylway train cnn name=survivor" in err
    assert result["exit_code"] == 12
    code, result, err = raylway(*command, "scale.workers=0", "scale.threads=1", cwd=tmp_path)
    assert (code, result["status"]) == (0, "finished"), err
    assert result["resumed_from_step"] > 0
