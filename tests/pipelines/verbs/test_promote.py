"""A candidate becomes champion by its rules and a paired test on the same rows; all that is decided is written on the version."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import datasets

from pipelines.data.dataset import Dataset
from pipelines.errors import RecipeError
from pipelines.evaluation import models
from pipelines.screen import Screen
from pipelines.tracking import lookup
from pipelines.tracking.client import connect
from pipelines.verbs import promote as promoting
from tests.cli import raylway
from tests.trained import storage_with, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_database):
    """A storage with a poor classifier (champion, as the first) and a good one."""
    storage = storage_with(tmp_path_factory.mktemp("made"), empty_database)
    trained(storage, "name=poor", "train.steps=15")
    trained(storage, "name=good", "train.steps=200")
    return storage


@pytest.fixture
def storage(made, tmp_path):
    """The same, of the test's own: its registry may be changed. (The models' files stay where they are.)"""
    shutil.copytree(made / "datasets", tmp_path / "datasets")
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def promote(called, storage, *overrides, **more):
    return promoting.promote(called, [f"storage={storage}", "scale.workers=0", *overrides], screen=Screen(as_json=True), **more)


def roll_back(called, storage, reason=None):
    return promoting.roll_back(called, [f"storage={storage}"], reason=reason, screen=Screen(as_json=True))


def aliases(storage, name="cnn"):
    return lookup.aliases(connect(f"sqlite:///{storage}/mlflow.db"), name)


def right(storage, called):
    """Whether the model is right, of each test row: by its network alone, not by our judging."""
    model = models.find(called, [f"storage={storage}"])
    test = Dataset.open(storage / "datasets" / model.fingerprint).test
    rows = test.take(np.arange(len(test)))
    with torch.no_grad():
        return model.network()(torch.from_numpy(rows["image"])).argmax(1).numpy() == rows["label"]


def test_a_better_candidate_becomes_champion_by_mcnemars_test(storage):
    result = promote("cnn", storage)
    assert (result["decision"], result["candidate"], result["champion"], result["previous"], result["was"]) == ("promoted", 2, 2, 1, 1)
    good, poor = right(storage, "models:/cnn/2"), right(storage, "models:/cnn/1")
    ours, theirs = int((good & ~poor).sum()), int((poor & ~good).sum())
    [rule] = result["rules"]
    assert f"McNemar's exact test, {ours} : {theirs}" in rule["found"]
    p = float(rule["found"].partition("p = ")[2].split()[0])
    assert p == pytest.approx(stats.binomtest(ours, ours + theirs).pvalue, rel=0.01)
    assert aliases(storage) == {"candidate": 2, "champion": 2, "previous": 1}


def test_a_worse_candidate_is_refused_and_its_version_says_why(storage):
    promote("cnn", storage)
    result = promote("models:/cnn/1", storage)
    assert (result["decision"], result["champion"]) == ("refused", 2)
    assert result["reason"].startswith("accuracy against models:/cnn/2: -0.")
    version = connect(f"sqlite:///{storage}/mlflow.db").get_model_version("cnn", "1")
    assert version.tags["raylway.decision"] == "refused"
    assert version.tags["raylway.reason"] == result["reason"]
    assert json.loads(version.tags["raylway.rules"]) == result["rules"]
    assert "| rule | wanted | found |" in version.description
    assert "FAILED" in version.description


def test_floors_refuse_whoever_does_not_hold_them(storage):
    result = promote("cnn", storage, "promote.min={accuracy: 0.9999}", "promote.max_latency_ms=0.0001")
    assert result["decision"] == "refused"
    assert [(rule["rule"], rule["passed"]) for rule in result["rules"]] == [
        ("accuracy", False),
        ("latency of one row", False),
        ("accuracy against models:/cnn/1", True),
    ]
    assert aliases(storage)["champion"] == 1


def test_slices_are_held_by_each_value(storage):
    result = promote(
        "cnn", storage, "promote.slices={label: {accuracy: 0.1, loss: 9}}", "promote.min_rows=15", "promote.max_latency_ms=1000"
    )
    held = [rule for rule in result["rules"] if rule["rule"].startswith("label=")]
    assert len(held) > 3
    assert all(rule["passed"] for rule in held)
    assert result["decision"] == "promoted"


def test_promoting_a_champion_again_changes_nothing(storage):
    promote("cnn", storage)
    assert promote("cnn", storage)["decision"] == "promoted"
    assert aliases(storage) == {"candidate": 2, "champion": 2, "previous": 1}


def test_force_needs_a_reason_and_writes_it_on_the_version(storage):
    with pytest.raises(RecipeError, match=r"--force: say why with --reason"):
        promote("cnn", storage, force=True)
    result = promote("cnn", storage, "promote.min={accuracy: 0.9999}", force=True, reason="the old one is wrong about sevens")
    assert (result["decision"], result["forced"], result["champion"]) == ("promoted", True, 2)
    version = connect(f"sqlite:///{storage}/mlflow.db").get_model_version("cnn", "2")
    assert (version.tags["raylway.decision"], version.tags["raylway.reason"]) == ("forced", "the old one is wrong about sevens")
    assert "FAILED" in version.description


def test_a_rollback_makes_the_previous_one_champion_again(storage):
    promote("cnn", storage)
    result = roll_back("cnn", storage, "it is slow")
    assert (result["decision"], result["champion"], result["was"]) == ("rolled back", 1, 2)
    assert aliases(storage) == {"candidate": 2, "champion": 1}
    assert connect(f"sqlite:///{storage}/mlflow.db").get_model_version("cnn", "2").tags["raylway.reason"] == "it is slow"
    with pytest.raises(RecipeError, match="models:/cnn has no previous champion"):
        roll_back("models:/cnn@champion", storage)
    with pytest.raises(RecipeError, match=r"there is no registered model 'cn'; there are: cnn"):
        roll_back("cn", storage)


def test_when_the_champion_was_deleted_nobody_walks_in(storage):
    promote("cnn", storage)
    connect(f"sqlite:///{storage}/mlflow.db").delete_model_version("cnn", "2")
    result = promote("models:/cnn/1", storage)
    assert result["decision"] == "refused"
    assert "version 2 was deleted, or its alias removed; --rollback goes back" in result["reason"]
    assert roll_back("cnn", storage)["champion"] == 1


def test_who_judged_against_a_champion_of_the_past_is_told_to_judge_again(storage, monkeypatch):
    """Between the verdict and the alias, another is promoted."""
    trained(storage, "name=third", "train.steps=5")
    judge = promoting.judge

    def judge_and_be_overtaken(model, now, each):
        verdict = judge(model, now, each)
        monkeypatch.setattr(promoting, "judge", judge)
        promote("models:/cnn/3", storage, force=True, reason="faster")
        return verdict

    monkeypatch.setattr(promoting, "judge", judge_and_be_overtaken)
    result = promote("models:/cnn/2", storage)
    assert (result["decision"], result["champion"]) == ("refused", 3)
    assert "changed while the candidate was judged: it was version 1, it is version 3; give the command again" in result["reason"]


def test_of_two_that_promote_the_same_version_both_are_told_that_it_is_champion(storage, monkeypatch):
    judge = promoting.judge

    def judge_and_be_overtaken(model, now, each):
        verdict = judge(model, now, each)
        monkeypatch.setattr(promoting, "judge", judge)
        promote("cnn", storage, force=True, reason="quicker than you")
        return verdict

    monkeypatch.setattr(promoting, "judge", judge_and_be_overtaken)
    assert promote("cnn", storage)["decision"] == "promoted"
    version = connect(f"sqlite:///{storage}/mlflow.db").get_model_version("cnn", "2")
    assert version.tags["raylway.reason"] == "quicker than you"


def test_a_first_model_that_cannot_be_judged_is_trained_all_the_same_and_no_champion(storage):
    result = trained(storage, "name=odd", "track.register=odd", "promote.slices={nowhere: {accuracy: 0.5}}", "train.steps=5")
    assert result["status"] == "finished"
    assert aliases(storage, "odd") == {"candidate": 1}


def test_only_rules_can_be_set_when_promoting(storage):
    with pytest.raises(RecipeError, match=r"data.source=digits: a candidate is judged on its own test rows"):
        promote("cnn", storage, "data.source=digits")


def test_a_run_that_registered_nothing_has_no_version_to_promote(storage):
    trained(storage, "name=unregistered", "track.register=false", "train.steps=5")
    with pytest.raises(RecipeError, match="unregistered: registered no model"):
        promote("unregistered", storage)


def test_the_first_of_a_name_is_champion_only_if_it_holds_its_floors(storage):
    trained(storage, "name=unfit", "track.register=fit", "promote.min={accuracy: 0.9999}", "train.steps=5")
    assert aliases(storage, "fit") == {"candidate": 1}
    version = connect(f"sqlite:///{storage}/mlflow.db").get_model_version("fit", "1")
    assert version.tags["raylway.decision"] == "refused"
    trained(storage, "name=fit", "track.register=fit", "promote.min={accuracy: 0.5}", "promote.max_latency_ms=1000")
    assert aliases(storage, "fit") == {"candidate": 2, "champion": 2}


def table(path, rows, seed, classes=("benign", "malignant")):
    """A sample of the breast cancer rows as a file of a user's own."""
    data = datasets.load_breast_cancer()
    frame = pd.DataFrame(data.data[:, :6], columns=[name.replace(" ", "_") for name in data.feature_names[:6]])
    frame["label"] = np.array(classes)[data.target]
    frame.sample(rows, random_state=seed).to_csv(path, index=False)
    return f"data.source={path}"


@pytest.fixture(scope="module")
def tables(tmp_path_factory, empty_database):
    """Version 1 of a table's classifier was trained on other rows than version 2: means and deviations are others as well."""
    storage = storage_with(tmp_path_factory.mktemp("tables"), empty_database)
    trained(storage, table(storage / "old.csv", 300, 1), "name=old", recipe="mlp_binary")
    trained(storage, table(storage / "new.csv", 500, 2), "name=new", recipe="mlp_binary")
    return storage


def test_a_champion_of_other_data_answers_the_same_rows_by_its_own_encoding(tables):
    import mlflow

    result = promote("models:/mlp_binary/2", tables, "promote.margin=0.5")
    assert result["warnings"] == [f"models:/mlp_binary/1 was trained on other data "
                                  f"({models.find('old', [f'storage={tables}']).fingerprint}); "
                                  "some of these test rows may have been among them"]  # fmt: skip
    new = models.find("new", [f"storage={tables}"])
    test = Dataset.open(tables / "datasets" / new.fingerprint).test
    encoded = test.take(np.arange(len(test)))
    raw = pd.read_csv(tables / "new.csv")
    kept = [int(np.flatnonzero(np.isclose(raw[list(new.encoding.features)], row, rtol=1e-9).all(1))[0]) for row in encoded["features"]]
    raw = raw.iloc[kept]
    given = raw.drop(columns="label")
    said = {number: mlflow.pyfunc.load_model(f"models:/mlp_binary/{number}").predict(given)["label"] for number in (1, 2)}
    ours, theirs = ((said[number].to_numpy() == raw["label"].to_numpy()) for number in (2, 1))
    expected = f"McNemar's exact test, {(ours & ~theirs).sum()} : {(theirs & ~ours).sum()}"
    assert expected in result["rules"][0]["found"]


def test_a_champion_of_other_classes_or_of_another_task_cannot_be_compared(tables, tmp_path):
    trained(tables, table(tables / "named.csv", 400, 3, ("good", "bad")), "name=named", "promote.margin=0.1", recipe="mlp_binary")
    result = promote("named", tables)
    assert result["decision"] == "refused"
    assert "outside the classes" in result["reason"] or "its classes are" in result["reason"]
    trained(tables, "name=images", "track.register=mlp_binary", "train.steps=5")
    assert "it is a model of tabular classification, this one of image classification" in promote("images", tables)["reason"]


@pytest.mark.long
def test_forecasts_are_compared_in_blocks_and_in_the_same_units(tmp_path, empty_database):
    storage = storage_with(tmp_path, empty_database)
    series = pd.DataFrame({"hour": range(4000), "demand": 100 + 20 * np.sin(np.arange(4000) / 24 * 2 * np.pi) + np.arange(4000) / 200})
    series.iloc[:3000].to_csv(storage / "short.csv", index=False)
    series.to_csv(storage / "long.csv", index=False)
    trained(storage, f"data.source={storage / 'short.csv'}", "name=short", "train.steps=3", recipe="lstm")
    trained(storage, f"data.source={storage / 'long.csv'}", "name=long", "train.steps=50", recipe="lstm")
    result = promote("lstm", storage)
    [rule] = result["rules"]
    assert (rule["rule"], result["decision"]) == ("mse against models:/lstm/1", "promoted"), result
    short, long = (models.find(name, [f"storage={storage}"]) for name in ("short", "long"))
    stored = Dataset.open(storage / "datasets" / long.fingerprint).test
    z = stored.take(np.arange(len(stored)))["values"]
    own = z * long.encoding.deviation[0] + long.encoding.mean[0]
    windows = np.lib.stride_tricks.sliding_window_view(own[:, 0], 30)
    errors = []
    for model in (long, short):
        mean, deviation = model.encoding.mean[0], model.encoding.deviation[0]
        given = torch.from_numpy(((windows[:, :24, None] - mean) / deviation).astype(np.float32))
        with torch.no_grad():
            forecast = model.network()(given).numpy()[:, :, 0] * deviation + mean
        errors.append((((forecast - windows[:, 24:]) / long.encoding.deviation[0]) ** 2).mean())
    assert float(rule["found"].split()[0]) == pytest.approx(errors[0] - errors[1], rel=0.01, abs=1e-4)
    assert "paired permutation test" in rule["found"]


def test_the_command_refuses_with_exit_code_3(made, tmp_path):
    shutil.copytree(made / "datasets", tmp_path / "runs" / "datasets")
    shutil.copy(made / "mlflow.db", tmp_path / "runs" / "mlflow.db")
    code, result, err = raylway("promote", "cnn", "scale.workers=0", "promote.min={accuracy: 0.9999}", "--json", cwd=tmp_path)
    assert (code, result["decision"]) == (3, "refused")
    assert "refused: accuracy: 0." in err
    assert "Traceback" not in err
