"""The whole path through real Ray and real MLflow, on the embedded digits; one local cluster for all."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from pipelines import config
from pipelines.folder import RunFolder
from pipelines.screen import Screen
from pipelines.tracking.journal import read
from pipelines.train import train

pytestmark = pytest.mark.usefixtures("ray_cluster")
SHORT = ("train.steps=40", "train.checkpoint_every=10", "train.log_every=1", "scale.threads=1")


def run(storage, *settings):
    return train(config.load("cnn", [f"storage={storage}", *SHORT, *settings]), screen=Screen())


def losses(storage, result):
    points = read(RunFolder(storage / "cnn" / result["run_name"]).journal)
    return [point.metrics["loss"] for point in points if "loss" in point.metrics]


@pytest.fixture(scope="module")
def alone(tracked):
    """The same run without Ray: what all others are compared with."""
    return run(tracked, "scale.workers=0", "name=alone")


@pytest.fixture(scope="module")
def one_worker(tracked):
    return run(tracked, "scale.workers=1", "name=one-worker")


def test_a_ray_worker_makes_the_bits_of_a_plain_process(alone, one_worker):
    assert one_worker["weights_sha256"] == alone["weights_sha256"]
    assert one_worker["metrics"]["test/accuracy"] == alone["metrics"]["test/accuracy"]


def test_the_result_is_the_contract_of_the_design(one_worker):
    assert set(one_worker) == {
        *("run_id", "run_name", "status", "resumed_from_step", "steps", "metrics", "weights_sha256", "checkpoint", "model"),
        *("tracking_uri", "run_url", "seconds", "samples_per_second", "workers"),
    }
    assert set(one_worker["seconds"]) == {"total", "startup", "prepare", "train", "evaluate", "register"}
    assert {"loss", "val/loss", "val/accuracy", "test/accuracy", "best/val/accuracy", "baseline/accuracy"} <= set(one_worker["metrics"])
    assert (one_worker["status"], one_worker["steps"], one_worker["workers"]) == ("finished", 40, 1)
    assert one_worker["model"]["uri"] == f"models:/cnn/{one_worker['model']['version']}"


def test_mlflow_has_what_one_wants_to_see(one_worker, tracked):
    from mlflow import MlflowClient

    client = MlflowClient(one_worker["tracking_uri"])
    found = client.get_run(one_worker["run_id"])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "one-worker"
    assert found.data.params["optim.lr"] == "0.001"
    assert not [name for name in found.data.params if name.startswith(("scale.", "storage", "track."))]
    assert found.data.tags["weights_sha256"] == one_worker["weights_sha256"]
    assert "test accuracy" in found.data.tags["mlflow.note.content"]
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", found.data.tags["data.fingerprint"])
    assert {"config.yaml", "versions.json", "figures"} <= {file.path for file in client.list_artifacts(one_worker["run_id"])}
    figures = {file.path for file in client.list_artifacts(one_worker["run_id"], "figures")}
    assert figures == {"figures/curves.png", "figures/confusion_matrix.png"}
    history = client.get_metric_history(one_worker["run_id"], "loss")
    assert [point.step for point in history] == list(range(1, 41))
    assert [point.value for point in history] == losses(tracked, one_worker)


def test_a_finished_run_is_not_trained_again(one_worker, tracked):
    assert run(tracked, "scale.workers=1", "name=one-worker") == one_worker


def test_two_ray_workers_follow_the_curve_of_one(alone, tracked):
    two = run(tracked, "scale.workers=2", "name=two-workers")
    assert losses(tracked, two) == pytest.approx(losses(tracked, alone), abs=1e-5)
    assert two["metrics"]["test/accuracy"] == alone["metrics"]["test/accuracy"]


def test_a_worker_killed_in_mid_run_is_replaced_and_the_bits_are_the_same(tracked):
    # small batches and many steps, so that the kill falls into the middle
    long = ("train.steps=3000", "train.checkpoint_every=100", "train.log_every=10", "train.batch=8")
    undisturbed = run(tracked, *long, "scale.workers=0", "name=long-alone")
    killed = threading.Event()

    def kill_when_a_checkpoint_stands():
        checkpoints = RunFolder(tracked / "cnn" / "long-killed").checkpoints
        while not list(checkpoints.glob("step-*/MANIFEST.json")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::RayTrain"):
                os.kill(process.pid, signal.SIGKILL)
                killed.set()

    threading.Thread(target=kill_when_a_checkpoint_stands, daemon=True).start()
    disturbed = run(tracked, *long, "scale.workers=1", "name=long-killed")
    assert killed.is_set()
    assert 0 < disturbed["resumed_from_step"] < 3000
    assert disturbed["weights_sha256"] == undisturbed["weights_sha256"]
    points = list(read(RunFolder(tracked / "cnn" / "long-killed").journal))
    assert [point.step for point in points if "loss" in point.metrics] == list(range(10, 3001, 10))
    assert losses(tracked, disturbed) == losses(tracked, undisturbed)
