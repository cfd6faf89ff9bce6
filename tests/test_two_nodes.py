"""A cluster of two nodes that is the caller's own: a run has the curve of one process, and rows of Ray Data train as their file does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from pipelines import api
from tests.nodes import SHORT, losses, made, run

TWO = (*SHORT, "scale.workers=2", "scale.cpus=1")
pytestmark = pytest.mark.usefixtures("two")


@pytest.fixture(scope="module")
def two():
    with made(2) as cluster:
        yield cluster


@pytest.mark.timeout(300)  # several trainings, beside other tests that use Ray
def test_two_nodes_follow_the_curve_of_one_process(tracked):
    alone = run(tracked, *SHORT, "scale.workers=0", "name=alone-cnn")
    result = run(tracked, *SHORT, "scale.workers=2", "name=on-two-nodes")
    assert result["workers"] == 2
    assert losses(tracked, "on-two-nodes") == pytest.approx(losses(tracked, "alone-cnn"), abs=1e-5)
    assert result["metrics"]["test/accuracy"] == alone["metrics"]["test/accuracy"]


@pytest.mark.timeout(300)  # several trainings, beside other tests that use Ray
def test_a_ray_dataset_trains_as_its_file_does_on_the_callers_own_ray_which_stays(tracked, tmp_path):
    import ray

    frame = load_breast_cancer(as_frame=True).frame.rename(columns={"target": "label"})
    frame.to_csv(tmp_path / "table.csv", index=False)
    rows = ray.data.from_pandas([frame[:200], frame[200:]])
    short = {"scale.threads": 1, "train.steps": 6, "track.register": False}
    of_file = api.train("mlp_binary", short | {"scale.workers": 0}, data=tmp_path / "table.csv", storage=tracked)
    here = api.train("mlp_binary", short | {"scale.workers": 0}, data=rows, storage=tracked)
    there = api.train("mlp_binary", short | {"scale.workers": 1, "name": "rows-there"}, data=rows, storage=tracked)
    assert here.weights_sha256 == there.weights_sha256 == of_file.weights_sha256
    assert len({of_file.run_id, here.run_id, there.run_id}) == 3
    images = ray.data.from_numpy(np.zeros((90, 8, 8), np.uint8)).rename_columns({"data": "image"})
    labelled = images.add_column("label", lambda batch: np.arange(len(batch)) % 3)
    assert sum(api.prepare("cnn", {"train.batch": 16}, data=labelled, storage=tracked)["rows"].values()) == 90
    assert ray.is_initialized()


@pytest.mark.slow
def test_workers_that_hold_a_part_each_follow_the_curve_of_those_that_hold_all(tracked):
    results = {
        strategy: run(tracked, *TWO, f"scale.strategy={strategy}", f"name={strategy}", recipe="transformer") for strategy in ("ddp", "fsdp")
    }
    assert losses(tracked, "fsdp", "transformer") == pytest.approx(losses(tracked, "ddp", "transformer"), abs=1e-5)
    assert results["fsdp"]["metrics"]["test/accuracy"] == results["ddp"]["metrics"]["test/accuracy"]
    assert [result["workers"] for result in results.values()] == [2, 2]


@pytest.mark.slow
def test_a_recurrent_network_does_as_well(tracked):
    run(tracked, *SHORT, "scale.workers=0", "name=alone-lstm", recipe="lstm")
    run(tracked, *SHORT, "scale.workers=2", "name=lstm-on-two-nodes", recipe="lstm")
    assert losses(tracked, "lstm-on-two-nodes", "lstm") == pytest.approx(losses(tracked, "alone-lstm", "lstm"), abs=1e-5)
