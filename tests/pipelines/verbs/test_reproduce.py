"""A run is trained again from what was written down of it; whoever changes something is told what, and where it shows first."""

from __future__ import annotations

import hashlib
import json
import sqlite3

import numpy as np
import pytest

from pipelines.errors import Diverged, RecipeError
from pipelines.screen import Screen
from pipelines.tracking import lookup
from pipelines.verbs.reproduce import reproduce
from tests.cli import raylway
from tests.idx import write_idx
from tests.trained import storage_with, trained

EVERY = ("track.register=false", "train.log_every=1", "train.steps=30", "train.eval_every=7")


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    return storage_with(tmp_path_factory.mktemp("reproduced"), empty_database)


@pytest.fixture(scope="module")
def original(place):
    return trained(place, *EVERY, "name=original", "optim.schedule=cosine")


def again(place, called, *overrides, steps=None):
    return reproduce(called, [f"storage={place}", *overrides], steps=steps, screen=Screen(as_json=True))


def kept(place, run_id):
    with lookup.opened(f"sqlite:///{place}/mlflow.db") as client:
        return lookup.find(client, run_id)


def files(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_repeated_bit_for_bit_and_stays_as_it_was(place, original):
    before, metrics = files(place / "cnn"), kept(place, original["run_id"]).metrics
    result = again(place, "original")
    assert result["reproduced"]
    assert (result["steps"], result["first_difference"], result["causes"]) == (30, None, [])
    assert result["compared"] >= 30 * 3  # loss, accuracy and learning rate at each step, besides the looks
    assert result["weights_sha256"] == {"recorded": original["weights_sha256"], "now": original["weights_sha256"]}
    assert files(place / "cnn") == before
    after = kept(place, original["run_id"])
    assert after.metrics == metrics
    assert after.tags["raylway.reproduced"].endswith(": bit for bit, 30 steps")
    assert not (place / ".reproduce").exists()
    with lookup.opened(f"sqlite:///{place}/mlflow.db") as client:
        assert lookup.newest_names(client).count("original") == 1


def test_the_first_steps_follow_the_schedule_of_the_whole_run(place, original):
    result = again(place, original["run_id"], steps=10)
    assert (result["reproduced"], result["steps"], result["weights_sha256"]) == (True, 10, None)


def test_the_first_number_that_differs_is_named_and_so_is_a_package_of_another_version(place):
    result = trained(place, *EVERY, "train.seed=1", "name=altered")
    [versions] = (place / "artifacts").glob(f"cnn/{result['run_id']}/artifacts/versions.json")
    versions.write_text(json.dumps(json.loads(versions.read_text()) | {"torch": "2.0.0"}))
    with sqlite3.connect(place / "mlflow.db") as database:
        where = (result["run_id"],)
        database.execute("update metrics set value = value * 1.0000001 where run_uuid = ? and key = 'loss' and step >= 12", where)
    told = again(place, "altered", steps=20)
    assert not told["reproduced"]
    first = told["first_difference"]
    assert (first["step"], first["metric"]) == (12, "loss")
    assert first["recorded"] == pytest.approx(first["now"] * 1.0000001, rel=1e-12)
    assert [cause["kind"] for cause in told["causes"]] == ["packages"]
    assert told["causes"][0]["recorded"] == "torch 2.0.0"


def test_a_changed_source_is_the_likely_cause_and_the_exit_code_is_4(place, tmp_path):
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8), rng.integers(0, 3, 300).astype(np.uint8)
    source = write_idx(tmp_path, pictures, labels)
    trained(place, *EVERY, f"data.source={source}", "name=sourced")
    write_idx(tmp_path, np.flip(pictures, 0).copy(), labels)
    code, told, err = raylway("reproduce", "sourced", f"storage={place}", "--steps", "5", "--json", cwd=tmp_path)
    assert (code, told["reproduced"], told["first_difference"]["step"]) == (4, False, 1)
    assert told["causes"][0]["kind"] == "data"
    assert "warning: data: " in err
    assert f"changed since: {source.name}" in err
    assert "NOT REPRODUCED: the first difference is at step 1" in err


def test_a_run_that_diverged_diverges_again(place):
    with pytest.raises(Diverged):
        trained(place, *EVERY, "optim.name=sgd", "optim.lr=1e30", "name=diverged")
    result = again(place, "diverged")
    assert result["reproduced"]
    assert result["steps"] < 10


@pytest.mark.parametrize(
    ("called", "overrides", "steps", "sentence"),
    [
        ("originl", [], None, "originl: there is no such run; did you mean original?"),
        ("original", ["optim.lr=1"], None, "optim.lr=1: a run is repeated as it was; only storage, track.uri"),
        ("original", ["more"], None, "more: an override is written key.path=value"),
        ("sparse", [], 3, "--steps 3: the first point of sparse is at step 10; give that many steps or more"),
    ],
)
def test_what_cannot_be_repeated_is_said(place, original, called, overrides, steps, sentence):
    if called == "sparse":
        trained(place, "track.register=false", "train.steps=10", "name=sparse")
    with pytest.raises(RecipeError) as error:
        again(place, called, *overrides, steps=steps)
    assert sentence in str(error.value)


def test_the_best_and_the_latest_can_be_named(place, original):
    with lookup.opened(f"sqlite:///{place}/mlflow.db") as client:
        latest = lookup.named(client, "latest")
    assert again(place, "latest", steps=10)["run_id"] == latest.run_id
