"""The head of a cluster of several nodes, or the driver, is killed with -9: the same command goes on and ends with the same bits."""

from __future__ import annotations

import contextlib
import re
import signal

import psutil
import pytest

from pipelines.run_record import RunFolder
from tests.cli import finish, raylway, start, until
from tests.head import Head, head

TRAIN = ("train", "cnn", "train.steps=3000", "train.batch=8", "train.checkpoint_every=200", "scale.threads=1")
TWO = (*TRAIN, "scale.workers=2", "scale.cpus=1", "track.register=false", "name=two", "--json")


@contextlib.contextmanager
def two_nodes():
    """A head that has no CPUs, and two nodes of one: two workers are on two nodes."""
    with head(cpus=0) as cluster:
        for _ in range(2):
            cluster.join(cpus=1)
        yield cluster


def inside(cluster: Head) -> dict[str, str]:
    return {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run, left alone."""
    place = tmp_path_factory.mktemp("undisturbed")
    code, told, err = raylway(*TWO, f"storage={place}", cwd=place)
    assert code == 0, err
    return told


def begun(folder):
    return lambda: len(list(folder.checkpoints.glob("step-*/MANIFEST.json"))) >= 2


def workers(cluster: Head) -> list[psutil.Process]:
    raylets = cluster.processes("raylet")
    return [child for raylet in raylets for child in raylet.children() if child.name().startswith("ray::RayTrain")]


def assert_goes_on(words, cluster, place, undisturbed):
    code, told, err = raylway(*words, cwd=place, **inside(cluster))
    assert code == 0, err
    assert told["workers"] == 2
    assert told["weights_sha256"] == undisturbed["weights_sha256"]
    return told["resumed_from_step"]


@pytest.mark.slow
def test_the_head_is_killed_and_the_command_goes_on_with_a_new_one(tmp_path, undisturbed):
    words, folder = (*TWO, f"storage={tmp_path}"), RunFolder(tmp_path / "cnn" / "two")
    with two_nodes() as cluster:
        running = start(words, cwd=tmp_path, **inside(cluster))
        until(begun(folder), running)
        [plane], mine = cluster.processes("gcs_server"), workers(cluster)
        assert len(mine) == 2
        for each in mine:  # or they would be done before anyone knows
            each.suspend()
        plane.send_signal(signal.SIGKILL)
        until(folder.pause.read_text, running)
        for each in mine:
            each.resume()
        code, told, err = finish(running)
        with folder.locked("writer", wait_seconds=0):
            left = max(path.name for path in folder.checkpoints.glob("step-*"))
        assert len(cluster.processes("raylet")) == 2, "the nodes are still there, and nothing on them writes"
    assert (code, told["exit_code"]) == (12, 12), err
    assert "control plane" in told["error"]
    assert "resume with: raylway train cnn" in err
    assert re.search(rf"going on from {left} the next time", err)
    with two_nodes() as another:
        assert assert_goes_on(words, another, tmp_path, undisturbed) == int(left.removeprefix("step-"))


@pytest.mark.slow
def test_the_driver_is_killed_and_the_command_goes_on(tmp_path, undisturbed):
    words, folder = (*TWO, f"storage={tmp_path}"), RunFolder(tmp_path / "cnn" / "two")
    with two_nodes() as cluster:
        running = start(words, cwd=tmp_path, **inside(cluster))
        until(begun(folder), running)
        running.kill()
        running.communicate()
        assert assert_goes_on(words, cluster, tmp_path, undisturbed) >= 400
