"""All that needs Ray, on one local cluster: the worker group, Ray Data, and the whole path with real MLflow on the embedded digits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from pyarrow import parquet
from sklearn.datasets import load_breast_cancer

from cluster import nodes, probes, session, shared_storage
from cluster.nodes import until_free
from cluster.ray_data import each, stream
from cluster.ray_train import WorkersFailed, launch
from pipelines import api, config
from pipelines.data import preparation
from pipelines.data.dataset import Dataset
from pipelines.data.source import BATCH_ROWS
from pipelines.data.splits import split_of
from pipelines.run_record import RunFolder
from pipelines.screen import Screen
from pipelines.search.ledger import Ledger
from pipelines.tracking.journal import read
from pipelines.verbs.doctor import doctor
from pipelines.verbs.evaluate import evaluate
from pipelines.verbs.predict import predict
from pipelines.verbs.sweep import sweep
from pipelines.verbs.train import train
from pipelines.verbs.verify import verify
from tests.idx import write_idx

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]  # trainings on Ray, beside other tests
SHORT = ("train.steps=40", "train.checkpoint_every=10", "train.log_every=1", "scale.threads=1")


@pytest.fixture(scope="module")
def ray_cluster():
    """One local Ray for all tests of the session, all of which stand in this file: a run inside uses it and leaves it as it is."""
    with session.connect() as connected:
        connected.ready()
        yield


def run(storage, *settings):
    return train(config.load("cnn", [f"storage={storage}", *SHORT, *settings]), screen=Screen())


def losses(storage, result):
    points = read(RunFolder(storage / "cnn" / result["run_name"]).journal)
    return [point.metrics["loss"] for point in points if "loss" in point.metrics]


LONG = ("train.steps=1000", "train.checkpoint_every=50", "train.log_every=10", "train.batch=8")
"""Small batches and many steps, so that a kill falls into the middle."""


@pytest.fixture(scope="module")
def undisturbed(tracked):
    """A run without Ray: what a run on Ray is compared with."""
    return run(tracked, *LONG, "scale.workers=0", "name=undisturbed")


@pytest.fixture(scope="module")
def killed(tracked):
    """The same run by a worker on Ray, which is killed in the middle."""
    done = threading.Event()

    def kill_when_a_checkpoint_stands():
        checkpoints = RunFolder(tracked / "cnn" / "killed").checkpoints
        while not list(checkpoints.glob("step-*/MANIFEST.json")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::RayTrain"):
                os.kill(process.pid, signal.SIGKILL)
                done.set()

    threading.Thread(target=kill_when_a_checkpoint_stands, daemon=True).start()
    result = run(tracked, *LONG, "scale.workers=1", "name=killed")
    assert done.is_set()
    return result


def test_a_worker_killed_in_mid_run_is_replaced_and_the_bits_are_those_of_a_plain_process(undisturbed, killed, tracked):
    assert 0 < killed["resumed_from_step"] < 1000
    assert killed["weights_sha256"] == undisturbed["weights_sha256"]
    assert killed["metrics"]["test/accuracy"] == undisturbed["metrics"]["test/accuracy"]
    points = list(read(RunFolder(tracked / "cnn" / "killed").journal))
    assert [point.step for point in points if "loss" in point.metrics] == list(range(10, 1001, 10))
    assert losses(tracked, killed) == losses(tracked, undisturbed)


@pytest.mark.long
def test_parity_of_two_workers_is_verified_on_the_spot(tracked):
    loaded = config.load("cnn", [f"storage={tracked}", "scale.workers=2", "scale.threads=1"])
    result = verify("parity", loaded, steps=6, screen=Screen(as_json=True))
    assert result["verified"]
    assert result["compared"] >= 6 * 3
    assert result["largest_difference"]["size"] <= 1e-5


def test_the_result_is_the_contract_of_the_design(killed):
    assert set(killed) == {
        *("run_id", "run_name", "status", "resumed_from_step", "steps", "metrics", "weights_sha256", "checkpoint", "model"),
        *("tracking_uri", "run_url", "seconds", "samples_per_second", "workers"),
    }
    assert set(killed["seconds"]) == {"total", "startup", "prepare", "train", "evaluate", "register"}
    assert {"loss", "val/loss", "val/accuracy", "test/accuracy", "best/val/accuracy", "baseline/accuracy"} <= set(killed["metrics"])
    assert (killed["status"], killed["steps"], killed["workers"]) == ("finished", 1000, 1)
    assert killed["model"]["uri"] == f"models:/cnn/{killed['model']['version']}"


def test_mlflow_has_what_one_wants_to_see(killed, tracked):
    from mlflow import MlflowClient

    client = MlflowClient(killed["tracking_uri"])
    found = client.get_run(killed["run_id"])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "killed"
    assert found.data.params["optim.lr"] == "0.001"
    assert not [name for name in found.data.params if name.startswith(("scale.", "storage", "track."))]
    assert found.data.tags["weights_sha256"] == killed["weights_sha256"]
    assert found.data.tags["raylway.threads"] == "1"
    assert "test accuracy" in found.data.tags["mlflow.note.content"]
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", found.data.tags["data.fingerprint"])
    assert {"config.yaml", "versions.json", "figures"} <= {file.path for file in client.list_artifacts(killed["run_id"])}
    figures = {file.path for file in client.list_artifacts(killed["run_id"], "figures")}
    assert figures == {f"figures/{name}.png" for name in ("curves", "confusion_matrix", "worst_mistakes")}
    history = client.get_metric_history(killed["run_id"], "loss")
    assert [point.step for point in history] == list(range(10, 1001, 10))
    assert [point.value for point in history] == losses(tracked, killed)


def test_a_finished_run_is_not_trained_again(killed, tracked):
    assert run(tracked, *LONG, "scale.workers=1", "name=killed") == killed


@pytest.mark.slow  # as the parity above, and a curve on two nodes (tests/test_two_nodes.py)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_two_ray_workers_follow_the_curve_of_one(tracked):
    alone = run(tracked, "scale.workers=0", "name=alone")
    two = run(tracked, "scale.workers=2", "name=two-workers")
    assert losses(tracked, two) == pytest.approx(losses(tracked, alone), abs=1e-5)
    assert two["metrics"]["test/accuracy"] == alone["metrics"]["test/accuracy"]


def test_results_come_in_the_pieces_order_from_other_processes():
    told = each(lambda piece: {"square": piece**2, "process": os.getpid()}, [3, 1, 2, 5, 4])
    assert [result["square"] for result in told] == [9, 1, 4, 25, 16]
    assert os.getpid() not in {result["process"] for result in told}


def test_what_the_work_raises_is_raised_here_as_it_was():
    def work(piece):
        raise KeyError(f"piece {piece}")

    with pytest.raises(KeyError, match="piece 7"):
        each(work, [7])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """20,000 pictures, which are three pieces of work; each is its own number, so that rows can be told apart."""
    numbers = np.arange(20_000)
    pictures = np.zeros((20_000, 4, 4), np.uint8)
    pictures[:, 0, 0], pictures[:, 0, 1] = numbers % 256, numbers // 256
    return write_idx(tmp_path_factory.mktemp("images"), pictures, (numbers % 3).astype(np.uint8), gz=False)


def test_ray_data_prepares_the_bytes_that_one_process_does(images, tmp_path):
    manifests = []
    for name, how in (("here", preparation.in_process), ("ray", each)):
        made = config.load("mlp", [f"storage={tmp_path / name}", f"data.source={images}"]).run
        plan = preparation.plan(made)
        assert len(plan.pieces) == 3
        manifests.append(preparation.prepare(made, plan, how).manifest)
    assert manifests[0] == manifests[1]


class Seen(LookupError):
    """What a worker raises in the end, with what it saw before."""


def look_and_raise(payload, *, rank, world_size, device, stream):
    """Read two epochs; raise what this worker is, and the pictures' numbers as they came to each worker in each epoch."""
    epochs = [[arrays["image"][:, 0, 0, :2] for arrays in stream(payload, epoch)] for epoch in range(2)]
    numbers = [np.concatenate(batches).astype(int) @ [1, 256] for batches in epochs]
    gathered: list = [None] * world_size
    torch.distributed.all_gather_object(gathered, [of_epoch.tolist() for of_epoch in numbers])
    place = {"rank": rank, "world_size": world_size, "device": device, "threads": torch.get_num_threads(), "niceness": os.nice(0)}
    raise Seen(place | {"allocator": {name: os.environ.get(name) for name in session.ALLOCATOR}}, gathered)


def living_actors():
    """Of all living actors but those of Ray Data that live as long as the cluster: (class, id), as the control plane knows them."""
    from ray._private.state import actors

    alive = {name: actor["ActorClassName"] for name, actor in actors().items() if actor["State"] != "DEAD" and not actor["IsDetached"]}
    return set(alive.items())


@pytest.fixture(scope="module")
def training_rows(images, tmp_path_factory):
    """(run, plan, prepared dataset) whose training rows are a stream."""
    made = config.load("mlp", [f"storage={tmp_path_factory.mktemp('stream')}", f"data.source={images}", "data.mode=stream"]).run
    plan = preparation.plan(made)
    return made, plan, preparation.prepare(made, plan, each)


@pytest.fixture(scope="module")
def failed(training_rows, tmp_path_factory):
    """How two workers failed that read a stream to its end; the actors before, and after; what was left of Ray's files."""
    before, scratch = living_actors(), tmp_path_factory.mktemp("scratch")
    with pytest.raises(WorkersFailed) as raised:  # which keeps its traceback, and what stands in that
        launch(look_and_raise, 64, workers=2, cpus=1, gpus=0, scratch=scratch, stream=stream(*preparation.streamed(*training_rows)))
    return raised, before, living_actors(), list(scratch.iterdir())


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_what_a_worker_raises_is_told_apart_from_its_death_and_its_stream_leaves_no_actor_behind(failed):
    raised, before, after, left = failed
    assert raised.value.lost == {}
    assert {type(error) for error in raised.value.raised.values()} == {Seen}
    assert after <= before
    assert left == []


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_a_ray_worker_has_its_threads_and_the_allocators_settings(failed):
    for rank, error in failed[0].value.raised.items():
        place = {"rank": rank, "world_size": 2, "device": "cpu", "threads": 1, "allocator": session.ALLOCATOR, "niceness": 0}
        assert error.args[0] == place


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_a_stream_gives_each_worker_other_rows_and_all_of_them_nearly_every_epoch(failed, training_rows):
    gathered = next(iter(failed[0].value.raised.values())).args[1]
    training = set(np.flatnonzero(split_of(0, 20_000, shares=(0.8, 0.1, 0.1), seed=0) == 0).tolist())
    assert training_rows[2].manifest.summary.splits["train"] == len(training)
    for epoch in range(2):
        first, second = gathered[0][epoch], gathered[1][epoch]
        assert len(first) == len(second)
        assert len({*first, *second}) == len(first) + len(second) > len(training) - 2 * 64
        assert {*first, *second} <= training
    assert gathered[0][0] != gathered[0][1], "another epoch, another order"


@pytest.mark.long
def test_a_streamed_run_ends_as_any_other_and_keeps_no_training_rows_but_a_few(images, tracked):
    settings = (f"data.source={images}", "data.mode=stream", "scale.workers=1", "train.batch=64")
    result = run(tracked, *settings, "name=streamed")
    assert (result["status"], result["steps"]) == ("finished", 40)
    plan = preparation.plan(config.load("cnn", [f"storage={tracked}", *settings]).run)
    manifest = Dataset.open(plan.folder).manifest
    assert 0 < manifest.rows["train"] <= BATCH_ROWS < manifest.summary.splits["train"]
    assert manifest.rows["test"] == manifest.summary.splits["test"]
    assert {"test/accuracy", "baseline/accuracy"} <= set(result["metrics"])


@pytest.mark.long
def test_a_ray_dataset_trains_as_its_file_does_on_the_callers_own_ray_which_stays(tracked, tmp_path):
    import ray

    frame = load_breast_cancer(as_frame=True).frame.rename(columns={"target": "label"})
    frame.to_csv(tmp_path / "table.csv", index=False)
    rows = ray.data.from_pandas([frame[:200], frame[200:]])
    short = {"scale.threads": 1, "train.steps": 6, "track.register": False}
    of_file = api.train("mlp_binary", short | {"scale.workers": 0}, data=tmp_path / "table.csv", storage=tracked)
    of_rows = api.train("mlp_binary", short | {"scale.workers": 1}, data=rows, storage=tracked)
    assert of_rows.weights_sha256 == of_file.weights_sha256
    assert of_rows.run_id != of_file.run_id
    images = ray.data.from_numpy(np.zeros((90, 8, 8), np.uint8)).rename_columns({"data": "image"})
    labelled = images.add_column("label", lambda batch: np.arange(len(batch)) % 3)
    assert sum(api.prepare("cnn", {"train.batch": 16}, data=labelled, storage=tracked)["rows"].values()) == 90
    assert ray.is_initialized()


# ---- sweeps


SEARCH = ("train.epochs=2", "sweep.search=random", "model.filters=8", "scale.threads=1", "sweep.space.optim.lr=loguniform(1e-4, 1e-1)")


def swept(storage, name, *settings):
    return sweep("cnn", [f"storage={storage}", f"name={name}", *SEARCH, *settings], screen=Screen())


def facts(storage, name):
    """Of each trial: its settings, the bits it ended with, the step it was resumed from."""
    trials = Ledger(storage / "cnn" / name / "ledger.jsonl").trials.values()
    return [(trial.params, trial.outcome["weights_sha256"]) for trial in trials], [trial.outcome["resumed_from_step"] for trial in trials]


@pytest.mark.long
def test_trials_on_ray_are_those_of_one_process_bit_for_bit_and_their_processes_are_used_again(tracked):
    here = swept(tracked, "swept-here", "sweep.trials=3", "scale.workers=0")
    there = swept(tracked, "swept-on-ray", "sweep.trials=3")
    assert facts(tracked, "swept-on-ray")[0] == facts(tracked, "swept-here")[0]
    assert [trial["metrics"]["val/loss"] for trial in there["trials"]] == [trial["metrics"]["val/loss"] for trial in here["trials"]]
    logged = (tracked / "cnn" / "swept-on-ray" / "run.log").read_text()
    assert len(set(re.findall(r"Trial pid=(\d+)", logged))) <= len(os.sched_getaffinity(0))


@pytest.mark.long
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(tracked):
    long = ("train.epochs=20", "train.checkpoint_every=20", "sweep.trials=1", "train.batch=32")
    swept(tracked, "trial-alone", *long, "scale.workers=0")
    killed = threading.Event()

    def kill_when_a_checkpoint_stands():
        while not list((tracked / "cnn" / "trial-killed").glob("0000/checkpoints/step-*/MANIFEST.json")):
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(("ray::Trial", "ray::ResourceTrainable")):
                    process.kill()
                    killed.set()

    threading.Thread(target=kill_when_a_checkpoint_stands, daemon=True).start()
    swept(tracked, "trial-killed", *long)
    assert killed.is_set()
    [bits], [resumed] = facts(tracked, "trial-killed")
    assert resumed > 0
    assert [bits] == facts(tracked, "trial-alone")[0]


@pytest.mark.long
def test_a_population_takes_over_the_weights_of_its_best(tracked):
    settings = ("sweep.scheduler=pbt", "train.epochs=6", "sweep.trials=3", "sweep.space.optim.lr=choice(1.0e-6, 0.005, 0.02)")
    result = swept(tracked, "population", *settings)
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 3
    events = [json.loads(line) for line in (tracked / "cnn" / "population" / "ledger.jsonl").read_text().splitlines()]
    changed = [event for event in events if event["event"] == "changed"]
    assert changed
    assert {event["params"]["optim.lr"] for event in changed} <= {1e-6, 0.005, 0.02}
    slow = next(event["trial"] for event in events if event["event"] == "begun" and event["params"]["optim.lr"] == 1e-6)
    assert slow in {event["trial"] for event in changed}
    assert result["trials"][slow]["metrics"]["val/accuracy"] > 0.5, "alone, it would have learnt nothing"


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_a_trial_may_have_workers_of_its_own_and_be_ended_early(tracked):
    # the second is the best at each rung on any machine, so that it is not ended
    settings = ("sweep.space.optim.lr=grid(3.0e-4, 0.02, 1.0e-6)", "sweep.search=grid", "sweep.scheduler=asha", "train.epochs=20")
    two = swept(tracked, "two-workers-each", *settings, "scale.workers=2")
    assert [trial["status"] for trial in two["trials"]] == ["finished", "finished", "stopped"]
    one = swept(tracked, "one-worker-each", *settings, "scale.workers=0")
    accuracy = [[trial["metrics"]["val/accuracy"] for trial in result["trials"][:2]] for result in (one, two)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.02)


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_the_workers_of_a_trial_may_hold_a_part_each(tracked):
    settings = ("sweep.space.optim.lr=grid(0.02, 0.03)", "sweep.search=grid", "sweep.confirm=1x2")
    parts = swept(tracked, "parts-of-trials", *settings, "scale.workers=2", "scale.strategy=fsdp")
    whole = swept(tracked, "whole-trials", *settings, "scale.workers=0")
    for metric in ("val/loss", "val/accuracy"):
        searched = [[trial["metrics"][metric] for trial in result["trials"]] for result in (parts, whole)]
        assert searched[0] == pytest.approx(searched[1], abs=1e-4)
    assert parts["best"]["params"] == whole["best"]["params"]
    confirmed = [[value for each in result["confirmed"]["entrants"] for value in each["values"]] for result in (parts, whole)]
    assert len(confirmed[0]) == 4
    assert confirmed[0] == pytest.approx(confirmed[1], abs=1e-4)


@pytest.mark.slow  # as the predictions below, which the same function makes
def test_a_model_is_judged_on_ray_data_as_in_one_process(undisturbed, tracked):
    def judged(workers):
        where = [f"storage={tracked}", f"scale.workers={workers}"]
        return evaluate(undisturbed["run_id"], where, columns=["label"], split="train", screen=Screen())

    here, there = judged(0), judged(1)
    assert here["rows"] > 1024, "one piece of work would not go to Ray"
    for found in (here, there):
        del found["seconds"], found["rows_per_second"]
    assert there == here


def test_answers_on_ray_are_those_of_one_process(images, tracked, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.verbs.predict._PIECE_SECONDS", 1e-9)
    run(tracked, "scale.workers=0", f"data.source={images}", "name=predicts", "train.steps=5", "track.register=false")
    tables, arguments = [], (str(images), [f"storage={tracked}", "scale.threads=1"])
    for workers in (0, 2):
        target = tmp_path / f"{workers}.parquet"
        result = predict("predicts", arguments[0], str(target), [*arguments[1], f"scale.workers={workers}"], screen=Screen())
        assert (result["rows_in"], result["rows_out"], result["parts_done_before"]) == (20_000, 20_000, 0)
        assert result["parts"] > 3
        assert result["rows_per_second"] > 0
        tables.append(parquet.read_table(target))
    here, there = tables
    assert here["row"].to_pylist() == there["row"].to_pylist() == list(range(20_000))
    assert here["label"].to_pylist() == there["label"].to_pylist()
    assert here["image"].combine_chunks().to_numpy_ndarray()[:, 0, :2].astype(int).dot([1, 256]).tolist() == list(range(20_000))


def asleep(seconds):
    time.sleep(seconds)


def broken():
    raise ValueError("two\nlines")


def test_a_node_that_is_silent_or_raises_is_an_answer_too():
    [node] = nodes.alive().values()
    assert probes.ask([node], asleep, lambda node: (60,), seconds=1) == ({}, {node.id: "no answer within 1 s"})
    assert probes.ask([node], broken, seconds=60) == ({}, {node.id: "ValueError: two"})


def test_the_folder_of_this_machine_is_the_same_on_its_only_node(tmp_path):
    assert shared_storage.compare(tmp_path, nodes.alive().values()) == ({}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_doctor_finds_this_machine_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = doctor([], address=None, allow_open=True, screen=Screen())
    assert told["status"] in ("PASS", "WARN"), told  # of a full disk here one would be warned
    names = [
        "storage",
        "mlflow",
        "cluster",
        "auth",
        "versions",
        "code",
        "resources",
        "disk",
        "disk",
        "disk",
        "clock",
        "storage",
        "all-reduce",
    ]
    assert [check["name"] for check in told["checks"]] == names
    assert [check["status"] for check in told["checks"] if check["name"] in ("versions", "code", "clock", "storage", "mlflow")] == [
        "PASS"
    ] * 6


def test_who_waits_for_room_is_told_who_holds_it_and_gets_it():
    import ray

    total, deadline = ray.cluster_resources()["CPU"], time.monotonic() + 20
    # Ray takes back what a task held a second later, and after a kill it may lose a CPU for good (2.60)
    while (free := ray.available_resources()["CPU"]) < total and time.monotonic() < deadline:
        time.sleep(0.5)
    holder = ray.remote(num_cpus=free)(Holder).remote()
    ray.get(holder.there.remote())
    said = []

    def say(text):
        said.append(text)
        ray.kill(holder)

    until_free(1, cpus=1, say=say)
    assert said[0].startswith(f"waiting for 1 worker x 1 CPU: 0 of {total:g} CPUs free; {free:g} CPUs held by job ")
    assert said[-1] == "got 1 worker x 1 CPU"


class Holder:
    def there(self):
        return True
