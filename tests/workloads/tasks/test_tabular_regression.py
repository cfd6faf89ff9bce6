"""Regression on a table: every number beside scikit-learn's, from the batch of a step to the judged, promoted and served model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import linear_model, metrics
from torch import nn

from pipelines.data.dataset import Dataset
from pipelines.data.embedded import diabetes
from pipelines.evaluation import models
from pipelines.run_record import RunFolder
from pipelines.screen import Screen
from pipelines.tracking.journal import read
from pipelines.verbs.compare import compare
from pipelines.verbs.evaluate import evaluate
from pipelines.verbs.predict import predict
from pipelines.verbs.promote import promote
from tests.trained import QUICK, storage_with, trained
from workloads.base import DataError
from workloads.mlp import RegressionMLP
from workloads.served import Served

TASK = RegressionMLP()
RAW = {"age": np.array([30.0, 40.0, np.nan, 50.0]), "target": np.array([100, 300, 200, 200])}
LEARNT = TASK.fit([RAW])
JUDGING = TASK.judging(LEARNT)


class Stored:
    """Prepared rows held in memory."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in columns or self.columns}


class Says(nn.Module):
    """Predicts what it is told, whatever it is shown."""

    def __init__(self, *z: float) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(z))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.z[:, None]


# ---- the encoding


def test_the_target_is_standardised_by_the_training_rows() -> None:
    assert (LEARNT.features, LEARNT.target_mean, LEARNT.target_deviation) == (("age",), 200.0, np.std(RAW["target"]))
    stored = TASK.encode(RAW, LEARNT)
    np.testing.assert_allclose(stored["target"], [-math.sqrt(2), math.sqrt(2), 0, 0])
    np.testing.assert_array_equal(stored["features"], [[30], [40], [40], [50]], "a missing feature counts as the training mean")
    assert set(TASK.encode({"age": RAW["age"]}, LEARNT)) == {"features"}


def test_mean_and_deviation_of_the_target_are_the_same_however_the_rows_come() -> None:
    parts = [{name: column[part] for name, column in RAW.items()} for part in (slice(0, 1), slice(1, 4))]
    assert TASK.fit(parts).target_deviation == pytest.approx(LEARNT.target_deviation, rel=1e-12)


@pytest.mark.parametrize(
    "use", [TASK.check, lambda raw: TASK.fit([raw]), lambda raw: TASK.encode(raw, LEARNT)], ids=["check", "fit", "encode"]
)
@pytest.mark.parametrize(("value", "sentence"), [(None, "column target: is missing"), ("dear", "column target: 'dear' is not a number")])
def test_a_target_that_is_missing_or_no_number_is_refused_with_its_row(use: Any, value: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=f"{sentence}$") as error:
        use({"age": np.arange(3.0), "target": np.array([1.0, value, 2.0], dtype=object)})
    assert error.value.row == 1


def test_a_target_that_never_changes_is_refused() -> None:
    with pytest.raises(DataError, match="column target: is 7 in every training row, so there is nothing to predict"):
        TASK.fit([{"age": np.arange(3.0), "target": np.full(3, 7.0)}])


def test_rows_to_predict_need_no_target() -> None:
    assert TASK.read_columns(("age", "target")) == ("target", "age")
    assert TASK.serving(LEARNT).columns(("name", "age")) == ("age",)


# ---- scores


def test_the_metrics_of_a_step_are_those_of_scikit_learn_in_the_unit_of_the_target() -> None:
    z = [-1.0, 0.5, 0.25, 0.0]
    batch = {name: torch.from_numpy(column) for name, column in TASK.encode(RAW, LEARNT).items()}
    means = {name: float(mean.value) for name, mean in TASK.step(Says(*z), batch).items()}
    curves, predicted = JUDGING.from_means(means), 200 + np.array(z) * LEARNT.target_deviation
    assert curves["mse"] == pytest.approx(metrics.mean_squared_error(RAW["target"], predicted))
    assert curves["rmse"] == pytest.approx(metrics.root_mean_squared_error(RAW["target"], predicted))
    assert curves["mae"] == pytest.approx(metrics.mean_absolute_error(RAW["target"], predicted))
    assert curves["r2"] == pytest.approx(metrics.r2_score(RAW["target"], predicted))
    assert curves["loss"] == pytest.approx(curves["mse"] / LEARNT.target_deviation**2)


def test_rows_of_one_target_have_no_share_of_its_variance() -> None:
    batch = {"features": torch.zeros(1, 1), "target": torch.tensor([1.7])}
    assert "r2" not in JUDGING.from_means({name: float(mean.value) for name, mean in TASK.step(Says(0.5), batch).items()})
    judged = JUDGING.judge({"predicted": np.array([0.5])}, {"target": np.array([1.7])})
    assert math.isnan(JUDGING.joint_metrics(judged)["r2"])


def test_the_naive_baseline_is_the_mean_of_the_training_rows() -> None:
    test = Stored(**TASK.encode({"age": np.arange(3.0), "target": np.array([200.0, 260.0, 140.0])}, LEARNT))
    naive = TASK.baselines(test, test, LEARNT)["training_mean"]
    assert naive["rmse"] == pytest.approx(math.sqrt(2400))
    assert naive["r2"] == pytest.approx(0)


def test_the_figures_show_predictions_beside_the_truth_and_their_errors() -> None:
    test = Stored(**TASK.encode(RAW, LEARNT))
    figures = TASK.figures(nn.Identity(), {"predicted": np.zeros(4)}, test, LEARNT)
    points = np.asarray(figures["predicted_against_true"].axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(points, [[100, 200], [300, 200], [200, 200], [200, 200]])
    errors = np.asarray(figures["residuals"].axes[0].collections[0].get_offsets())[:, 1]
    np.testing.assert_allclose(errors, [100, -100, 0, 0], atol=1e-9)


# ---- whole runs


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A storage with a model that has hardly learnt (champion, as the first) and a good one."""
    storage = storage_with(tmp_path_factory.mktemp("regression"), empty_database)
    trained(storage, "name=poor", "train.steps=3", recipe="mlp_regression")
    trained(storage, "name=good", "train.steps=100", recipe="mlp_regression")
    return storage


def predicted(storage: Path, called: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets of the test rows and what the network alone says of them, in the target's own unit."""
    model = models.find(called, [f"storage={storage}"])
    test = Dataset.open(storage / "datasets" / model.fingerprint).test
    rows = test.take(np.arange(len(test)))
    with torch.no_grad():
        z = model.network()(torch.from_numpy(rows["features"]))[:, 0].double().numpy()
    return tuple(each * model.encoding.target_deviation + model.encoding.target_mean for each in (rows["target"], z))


def test_the_headline_is_in_the_journal_and_its_best_value_beside_it(storage: Path) -> None:
    points = list(read(RunFolder(storage / "mlp_regression" / "good").journal))
    validated = [point.metrics["val/rmse"] for point in points if "val/rmse" in point.metrics]
    last = {name: value for point in points for name, value in point.metrics.items()}
    assert len(validated) > 3
    assert last["best/val/rmse"] == min(validated)
    assert last["test/rmse"] == pytest.approx(metrics.root_mean_squared_error(*predicted(storage, "good")), rel=1e-5)
    assert last["test/rmse"] < 0.8 * last["baseline/rmse"]


def test_the_good_model_is_near_least_squares(storage: Path) -> None:
    model = models.find("good", [f"storage={storage}"])
    data = Dataset.open(storage / "datasets" / model.fingerprint)
    train, test = (rows.take(np.arange(len(rows))) for rows in (data.train, data.test))
    linear = linear_model.LinearRegression().fit(train["features"], train["target"])
    bound = metrics.root_mean_squared_error(test["target"], linear.predict(test["features"])) * model.encoding.target_deviation
    assert metrics.root_mean_squared_error(*predicted(storage, "good")) < 1.15 * bound


def test_evaluate_gives_each_metric_its_interval(storage: Path) -> None:
    result = evaluate("good", [f"storage={storage}", *QUICK], columns=[], split=None, screen=Screen(as_json=True))
    truth, said = predicted(storage, "good")
    assert result["metrics"]["r2"] == pytest.approx(metrics.r2_score(truth, said), rel=1e-5)
    for name in ("mse", "mae", "rmse", "r2"):
        low, high = result["intervals"][name]
        assert low < result["metrics"][name] < high


def test_promote_tests_the_difference_in_the_unit_of_the_headline(storage: Path) -> None:
    result = promote("mlp_regression", [f"storage={storage}", *QUICK], screen=Screen(as_json=True))
    [rule] = result["rules"]
    assert (rule["rule"], result["decision"]) == ("rmse against models:/mlp_regression/1", "promoted")
    apart = metrics.root_mean_squared_error(*predicted(storage, "good")) - metrics.root_mean_squared_error(*predicted(storage, "poor"))
    assert float(rule["found"].split()[0]) == pytest.approx(apart, abs=1e-2)


def test_compare_tests_by_the_squared_errors_of_each_row(storage: Path) -> None:
    result = compare(("good", "poor"), [f"storage={storage}"], experiment=None, sweep=None, screen=Screen(as_json=True))
    [verdict] = result["comparisons"]
    assert (result["headline"], verdict["metric"], verdict["best"], verdict["real"]) == ("test/rmse", "test/mse", "good", True)


def test_predict_answers_rows_without_a_target_as_the_served_model_does(storage: Path, tmp_path: Path) -> None:
    table = pd.DataFrame(diabetes()).drop(columns="target").iloc[:20]
    table.loc[3, "bmi"] = None
    table.to_csv(tmp_path / "patients.csv", index=False)
    predict("good", str(tmp_path / "patients.csv"), str(tmp_path / "out.csv"), [f"storage={storage}", *QUICK], screen=Screen(as_json=True))
    model = models.find("good", [f"storage={storage}"])
    served = Served(model.workload, model.encoding, model.network()).predict(table)
    assert 50 < served["target"].mean() < 300
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["target"], served["target"], rtol=1e-5)
