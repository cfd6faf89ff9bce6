"""A model of each family, judged: the numbers are those of scikit-learn called on its own, or worked out by hand."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import datasets, metrics

from pipelines.data.dataset import Dataset
from pipelines.errors import RecipeError, StorageError, code_of
from pipelines.evaluation import models, statistics
from pipelines.screen import Screen
from pipelines.tracking import lookup
from pipelines.verbs import evaluate as evaluating
from pipelines.verbs import promote as promoting
from tests.cli import CPU_QUICK, raylway
from tests.trained import storage_with, trained
from workloads.base import DataError


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Four hundred calls of scikit-learn for each judging are most of what it takes; test_statistics asks whether intervals are right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_DEAR_RESAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory, empty_database):
    return storage_with(tmp_path_factory.mktemp("evaluated"), empty_database)


@pytest.fixture(scope="module")
def cnn(storage):
    return trained(storage, "name=judged-cnn", "track.register=false")


@pytest.fixture(scope="module")
def table(storage):
    return trained(storage, "name=judged-table", recipe="mlp_binary")


@pytest.fixture(scope="module")
def lstm(storage):
    return trained(storage, "name=judged-lstm", "track.register=false", recipe="lstm")


@pytest.fixture(scope="module")
def gpt(storage):
    return trained(storage, "name=judged-gpt", "track.register=false", recipe="gpt")


@pytest.fixture(scope="module")
def breast_cancer(tmp_path_factory) -> Path:
    """All rows of the embedded data set as a table of a user's own, with a column that no model asks for."""
    data = datasets.load_breast_cancer()
    frame = pd.DataFrame(data.data, columns=[name.replace(" ", "_") for name in data.feature_names])
    frame["label"] = data.target_names[data.target]
    frame["ward"] = np.where(np.arange(len(frame)) % 3 == 0, "north", "south")
    path = tmp_path_factory.mktemp("tables") / "patients.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def on_test_rows(storage):
    """`on_test_rows(called)`: the model judged on the test rows of its own data, once."""
    return functools.cache(lambda called: evaluate(called, storage))


@pytest.fixture(scope="module")
def on_patients(storage, table, breast_cancer):
    """A table's classifier judged on a file of new rows, sliced by a column of words and one of numbers."""
    return evaluate("judged-table", storage, f"data.source={breast_cancer}", columns=["ward", "mean_radius"])


def evaluate(called, storage, *overrides, columns=(), split=None):
    return evaluating.evaluate(called, [f"storage={storage}", *overrides], columns=columns, split=split, screen=Screen(as_json=True))


def problem(called, storage, *overrides, kind=DataError, **more):
    with pytest.raises(kind) as raised:
        evaluate(called, storage, *overrides, **more)
    return str(raised.value)


def said(model, frame):
    """What the registered model says of a table, through MLflow: not our evaluating."""
    import mlflow

    return mlflow.pyfunc.load_model(model["model"]["uri"]).predict(frame)


def test_a_classifier_has_the_numbers_of_scikit_learn(on_patients, table, breast_cancer):
    result = on_patients
    frame = pd.read_csv(breast_cancer)
    answers = said(table, frame.drop(columns=["label", "ward"]))
    truth, p = frame["label"].to_numpy(), np.stack(answers["probabilities"])
    classes = sorted(set(truth))
    predicted = answers["label"].to_numpy()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, predicted, average="macro")
    expected = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "loss": metrics.log_loss(truth, p, labels=classes),
        "brier": metrics.brier_score_loss(truth, p[:, 1], pos_label=classes[1]),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "roc_auc": metrics.roc_auc_score(truth == classes[1], p[:, 1]),
        f"class/{classes[0]}/recall": metrics.recall_score(truth, predicted, pos_label=classes[0]),
        f"class/{classes[1]}/precision": metrics.precision_score(truth, predicted, pos_label=classes[1]),
    }
    assert result["rows"] == len(frame) == 569
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-5)
    for name, (low, high) in result["intervals"].items():
        assert low <= result["metrics"][name] <= high or name == "calibration_error", name
    assert set(expected) <= set(result["intervals"])


def test_calibration_is_worked_out_as_naeini_did(on_patients, table, breast_cancer):
    result = on_patients
    frame = pd.read_csv(breast_cancer)
    answers = said(table, frame.drop(columns=["label", "ward"]))
    sure, right = answers["probability"].to_numpy(), (answers["label"] == frame["label"]).to_numpy()
    error = 0.0
    for low in range(10):
        inside = (sure > low / 10) & (sure <= (low + 1) / 10)
        error += abs(right[inside].sum() - sure[inside].sum()) / len(frame)
    assert result["metrics"]["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert sum(one["rows"] for one in result["calibration"]) == 569


def test_the_test_rows_score_what_training_said_of_them(storage, on_test_rows, cnn, lstm, gpt):
    for called, result in [("judged-cnn", cnn), ("judged-lstm", lstm), ("judged-gpt", gpt)]:
        found = on_test_rows(called)
        trained_with = {name.removeprefix("test/"): value for name, value in result["metrics"].items() if name.startswith("test/")}
        assert {name: found["metrics"][name] for name in trained_with} == pytest.approx(trained_with, rel=1e-5), called
        naive = {name.removeprefix("baseline/"): value for name, value in result["metrics"].items() if name.startswith("baseline/")}
        naive = {name: value for name, value in naive.items() if "/" not in name}
        assert found["naive"] == pytest.approx(naive), called
        assert (found["split"], found["data"]) == ("test", models.find(called, [f"storage={storage}"]).run.data.name)


def test_many_classes_have_the_numbers_of_scikit_learn(storage, on_test_rows, cnn):
    result = on_test_rows("judged-cnn")
    model = models.find("judged-cnn", [f"storage={storage}"])
    test = Dataset.open(storage / "datasets" / model.fingerprint).test.take(np.arange(result["rows"]))
    with torch.no_grad():
        p = model.network()(torch.from_numpy(test["image"])).double().softmax(1).numpy()
    truth, labels = test["label"], np.arange(10)
    assert result["metrics"]["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, p, multi_class="ovr", labels=labels), abs=1e-6)
    assert result["metrics"]["f1"] == pytest.approx(metrics.f1_score(truth, p.argmax(1), average="macro"), abs=1e-6)
    assert result["metrics"]["brier"] == pytest.approx(metrics.brier_score_loss(truth, p, labels=labels), abs=1e-6)


def test_a_forecast_is_judged_by_how_far_ahead_it_is(storage, on_test_rows, lstm):
    result = on_test_rows("judged-lstm")
    model = models.find("judged-lstm", [f"storage={storage}"])
    stored = Dataset.open(storage / "datasets" / model.fingerprint).test
    z = stored.take(np.arange(len(stored)))["values"]
    windows = np.lib.stride_tricks.sliding_window_view(z, 30, axis=0).transpose(0, 2, 1)
    with torch.no_grad():
        forecast = model.network()(torch.from_numpy(windows[:, :24].copy())).numpy()
    error = forecast[:, :, 0] - windows[:, 24:, 0]
    assert result["rows"] == len(windows)
    for ahead in range(6):
        assert result["metrics"][f"horizon/{ahead + 1}/mse"] == pytest.approx((error[:, ahead] ** 2).mean(), rel=1e-4)
    assert result["metrics"]["rmse"] == pytest.approx(
        math.sqrt(metrics.mean_squared_error(windows[:, 24:, 0], forecast[:, :, 0])), rel=1e-4
    )
    assert result["drawn_together"] == 30, "windows of 24 rows in and 6 out overlap, so so many are drawn together"
    low, high = result["intervals"]["rmse"]
    assert low == pytest.approx(math.sqrt(result["intervals"]["mse"][0]))
    assert low < result["metrics"]["rmse"] < high


def test_a_language_model_has_a_perplexity(on_test_rows, gpt):
    result = on_test_rows("judged-gpt")
    assert result["metrics"]["perplexity"] == pytest.approx(math.exp(gpt["metrics"]["test/loss"]), rel=1e-5)
    low, high = result["intervals"]["perplexity"]
    assert low < result["metrics"]["perplexity"] < high
    assert result["drawn_together"] > 1


def test_new_data_are_encoded_as_the_model_s_own_were(storage, table, breast_cancer, tmp_path):
    """Half of the rows have another mean; fitted anew, their features would be others."""
    frame = pd.read_csv(breast_cancer).iloc[:40]
    frame.to_csv(tmp_path / "few.csv", index=False)
    result = evaluate("judged-table", storage, f"data.source={tmp_path / 'few.csv'}")
    answers = said(table, frame.drop(columns=["label", "ward"]))
    assert result["metrics"]["accuracy"] == pytest.approx((answers["label"] == frame["label"]).mean())
    assert (result["rows"], result["split"]) == (40, None)


def test_rows_of_one_class_are_judged_and_what_cannot_be_told_is_null(storage, table, breast_cancer, tmp_path):
    frame = pd.read_csv(breast_cancer)
    frame[frame["label"] == "benign"].to_csv(tmp_path / "benign.csv", index=False)
    result = json.loads(json.dumps(evaluate("judged-table", storage, f"data.source={tmp_path / 'benign.csv'}"), allow_nan=False))
    assert result["metrics"]["roc_auc"] is None
    assert result["metrics"]["accuracy"] == pytest.approx(result["metrics"]["class/benign/recall"])


def test_a_slice_is_scored_by_itself(on_patients, table, breast_cancer):
    result = on_patients
    frame = pd.read_csv(breast_cancer)
    right = (said(table, frame.drop(columns=["label", "ward"]))["label"] == frame["label"]).to_numpy()
    north = (frame["ward"] == "north").to_numpy()
    wards = result["slices"]["ward"]
    assert {name: group["rows"] for name, group in wards.items()} == {"north": north.sum(), "south": (~north).sum()}
    assert wards["north"]["metrics"]["accuracy"] == pytest.approx(right[north].mean())
    low, high = wards["south"]["intervals"]["accuracy"]
    assert low <= right[~north].mean() <= high
    quarters = result["slices"]["mean_radius"]
    assert len(quarters) == 4
    assert sum(group["rows"] for group in quarters.values()) == 569


def test_test_rows_are_sliced_by_a_column_that_was_not_kept(storage, breast_cancer):
    """The splits are drawn, a bad row is left out, and still each row has its own value."""
    frame = pd.read_csv(breast_cancer)
    frame["number"] = np.arange(len(frame))
    frame["mean_radius"] = frame["mean_radius"].astype(object)
    frame.loc[7, "mean_radius"] = "broken"
    path = storage / "numbered.csv"
    frame.to_csv(path, index=False)
    features = "model.features=[" + ", ".join(frame.columns[:10]) + "]"
    result = trained(
        storage, f"data.source={path}", "data.on_bad_row=skip", features, "name=numbered", "track.register=false", recipe="mlp_binary"
    )
    found = evaluate("numbered", storage, columns=["label", "number"])
    test = Dataset.open(storage / "datasets" / models.find("numbered", [f"storage={storage}"]).fingerprint).test
    labels = np.bincount(test.take(np.arange(len(test)))["label"])
    assert {name: group["rows"] for name, group in found["slices"]["label"].items()} == dict(
        zip(["benign", "malignant"], labels, strict=True)
    )
    recall = found["metrics"]["class/malignant/recall"]
    assert found["slices"]["label"]["malignant"]["metrics"]["accuracy"] == pytest.approx(recall)
    assert result["metrics"]["test/accuracy"] == pytest.approx(found["metrics"]["accuracy"])


def test_a_split_of_new_data_is_cut_as_training_would_have_cut_it(storage, on_test_rows, table, breast_cancer):
    """The file holds the rows of the embedded data set in their order, so its test split must be the model's own."""
    own, new = on_test_rows("judged-table"), evaluate("judged-table", storage, f"data.source={breast_cancer}", split="test")
    assert (new["rows"], new["split"], new["artifacts"]) == (own["rows"], "test", "evaluations/patients-test")
    assert new["metrics"] == pytest.approx(own["metrics"])


def test_what_was_found_is_on_the_run_page(storage, on_patients, tmp_path):
    result = on_patients
    assert result["artifacts"] == "evaluations/patients"
    with lookup.opened(f"sqlite:///{storage}/mlflow.db") as client:
        kept = lookup.find(client, result["run_id"])
        assert kept.metrics["eval/patients/accuracy"] == result["metrics"]["accuracy"]
        assert kept.metrics["eval/patients/accuracy_low"] == result["intervals"]["accuracy"][0]
        assert kept.status == "FINISHED"
        names = {file.path for file in client.list_artifacts(result["run_id"], "evaluations/patients")}
        assert names == {
            f"evaluations/patients/{name}"
            for name in ("rows.parquet", "report.json", "report.md", "confusion_matrix.png", "reliability.png", "roc_curves.png")
        }
        page = Path(client.download_artifacts(result["run_id"], "evaluations/patients", str(tmp_path)))
    rows = pd.read_parquet(page / "rows.parquet")
    assert len(rows) == 569
    assert rows["correct"].mean() == pytest.approx(result["metrics"]["accuracy"])
    assert set(rows["slice ward"]) == {"north", "south"}
    assert json.loads((page / "report.json").read_text())["metrics"] == result["metrics"]
    assert "| accuracy |" in (page / "report.md").read_text()


def test_the_rows_of_a_forecast_are_in_their_own_units(storage, on_test_rows, lstm, tmp_path):
    result = on_test_rows("judged-lstm")
    with lookup.opened(f"sqlite:///{storage}/mlflow.db") as client:
        path = client.download_artifacts(result["run_id"], "evaluations/test/rows.parquet", str(tmp_path))
    rows = pd.read_parquet(path)
    model = models.find("judged-lstm", [f"storage={storage}"])
    apart = np.stack(rows["forecast"]) - np.stack(rows["truth"])
    assert (apart**2).mean() / model.encoding.deviation[0] ** 2 == pytest.approx(result["metrics"]["mse"], rel=1e-4)


def test_data_that_are_gone_are_prepared_anew(storage, on_test_rows, table):
    before = on_test_rows("judged-table")
    shutil.rmtree(storage / "datasets" / before["fingerprint"])
    again = evaluate("judged-table", storage)
    assert (again["fingerprint"], again["metrics"]) == (before["fingerprint"], before["metrics"])


def test_each_mistake_is_one_sentence(storage, table, cnn, gpt, breast_cancer, tmp_path):
    frame = pd.read_csv(breast_cancer)
    frame.drop(columns=["mean_area"]).to_csv(tmp_path / "lacking.csv", index=False)
    frame.iloc[:0].to_csv(tmp_path / "empty.csv", index=False)
    frame.assign(label="unclear").to_csv(tmp_path / "strange.csv", index=False)
    frame.assign(mean_area="?").iloc[:3].to_csv(tmp_path / "bad.csv", index=False)
    told = problem("judged-table", storage, f"data.source={tmp_path / 'lacking.csv'}")
    assert "lacking.csv: there is no column 'mean_area'" in told
    told = problem("judged-cnn", storage, "data.source=breast_cancer")
    assert "there is no column 'image'" in told
    assert told.endswith("judged-cnn is a model of image classification")
    assert "no rows" in problem("judged-table", storage, f"data.source={tmp_path / 'empty.csv'}")
    assert "'unclear' is outside the classes benign, malignant" in problem(
        "judged-table", storage, f"data.source={tmp_path / 'strange.csv'}"
    )
    assert "bad.csv, row 0: column mean_area: '?' is not a number" in problem(
        "judged-table", storage, f"data.source={tmp_path / 'bad.csv'}"
    )
    told = problem("judged-table", storage, columns=["wrad"], kind=RecipeError)
    assert "--slice wrad: breast_cancer has no such column; columns: " in told
    assert "stores tokens" in problem("judged-gpt", storage, columns=["text"], kind=RecipeError)
    told = problem("judged-table", storage, "data.splits.test=0.5", kind=RecipeError)
    assert "data.splits.test: goes with data.source=…" in told
    assert "--split tset: no such split" in problem("judged-cnn", storage, split="tset", kind=RecipeError)
    assert "write data.source=" in problem("judged-cnn", storage, "data.test=x.npz", kind=RecipeError)
    assert "no MLflow server answers" in problem("judged-cnn", storage, "track.uri=http://127.0.0.1:9", kind=StorageError)


def test_bad_rows_of_new_data_are_left_out_and_counted_if_asked(storage, table, breast_cancer, tmp_path):
    frame = pd.read_csv(breast_cancer).astype({"mean_area": object})
    frame.loc[5, "mean_area"] = "?"
    frame.to_csv(tmp_path / "one-bad.csv", index=False)
    skipping = (f"data.source={tmp_path / 'one-bad.csv'}", "data.on_bad_row=skip")
    result = evaluate("judged-table", storage, *skipping, columns=["ward"])
    assert (result["rows"], result["skipped"]) == (568, 1)
    assert sum(group["rows"] for group in result["slices"]["ward"].values()) == 568


def test_each_mistake_has_its_exit_code(storage, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    screen = Screen(as_json=True)
    for wrong, code, sentence in [
        (lambda: evaluate("models:/cnnn@champion", storage), 2, "there is no registered model 'cnnn'; there are: "),
        (
            lambda: evaluating.evaluate("latest", [], columns=(), split=None, screen=screen),
            12,
            "no runs are kept there yet; storage=FOLDER or track.uri=URI says where they are",
        ),
        (
            lambda: promoting.promote("mlp_binary", [f"storage={storage}", "promote.min.acuracy=1"], screen=screen),
            2,
            "no such metric; did you mean accuracy?",
        ),
    ]:
        with pytest.raises(Exception, match=re.escape(sentence)) as raised:
            wrong()
        assert code_of(raised.value) == code


def test_the_command_line_ends_with_the_code_of_a_mistake(storage, table, tmp_path):
    (tmp_path / "other.csv").write_text("label,size\nbenign,3\n")
    exit_code, result, err = raylway(
        "evaluate", "judged-table", f"storage={storage}", "data.source=other.csv", *CPU_QUICK, "--json", cwd=tmp_path
    )
    assert (exit_code, result["exit_code"]) == (13, 13), err
    assert "other.csv: there is no column 'mean_radius'" in err
    assert "Traceback" not in err
