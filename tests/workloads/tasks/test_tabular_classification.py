"""Tables to numbers, scores and words: against scikit-learn, against numpy's own ways to ignore gaps, and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn

from pipelines import config
from pipelines.data import preparation
from pipelines.data.splits import split_of
from pipelines.errors import RecipeError
from tests import runs
from workloads.base import DataError
from workloads.layers.dense import StandardizeColumns
from workloads.mlp import TabularMLP
from workloads.served import Served
from workloads.tasks.tabular_classification import TableEncoding

TASK = TabularMLP()
GAP = float("nan")


class Columns:
    """Rows held in memory."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in columns or self.columns}


def raw(label: Sequence[Any] | None = None, **features: Sequence[Any]) -> dict[str, np.ndarray]:
    columns = {name: values if isinstance(values, np.ndarray) else np.array(values) for name, values in features.items()}
    rows = len(next(iter(columns.values())))
    return {"label": np.array(label if label is not None else ["no", "yes"] * (rows // 2) + ["no"] * (rows % 2), dtype=object)} | columns


def standardized(encoding: TableEncoding, given: dict[str, np.ndarray]) -> np.ndarray:
    """What the first layer of a network makes of raw rows."""
    layer = StandardizeColumns(encoding.mean, encoding.deviation)
    return layer(torch.from_numpy(TASK.encode(given, encoding)["features"])).numpy()


SIZES = raw(age=[30, 40, 50, 60], height=[1.5, GAP, 1.7, 1.9])
LEARNT = TASK.fit([SIZES])


# ---- columns


def test_every_column_but_the_label_is_a_feature() -> None:
    assert TASK.read_columns(["age", "label", "height"]) == ("label", "age", "height")


def test_stated_features_are_read_in_their_order_and_no_others() -> None:
    assert TabularMLP(features=("height", "age")).read_columns(["age", "label", "name", "height"]) == ("label", "height", "age")


def test_a_feature_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no column 'hieght'; .*=height\?; columns: age, label, height"):
        TabularMLP(features=("hieght",)).read_columns(["age", "label", "height"])


def test_a_table_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'label'"):
        TASK.read_columns(["age", "height"])


def test_a_table_of_labels_alone_is_refused() -> None:
    with pytest.raises(DataError, match="no column but label"):
        TASK.read_columns(["label"])


@pytest.mark.parametrize("features", ["[a, a]", "[a, label]"])
def test_a_feature_stated_twice_or_the_label_itself_is_refused(features: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.features: '.*' is .*stated twice|'label' is what is predicted"):
        config.load("mlp_binary", [f"model.features={features}"])


def test_the_features_are_part_of_what_a_dataset_is_made_of() -> None:
    assert TabularMLP(features=("a",), hidden=3).task_settings() == {"classes": [], "features": ["a"]}


# ---- numbers


NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.just(GAP))


@given(table=arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(1, 3)), elements=NUMBERS), cut=st.integers(0, 12))
def test_means_and_deviations_are_those_of_all_numbers_that_are_there_however_the_rows_are_cut(table: np.ndarray, cut: int) -> None:
    columns = {f"c{place}": column for place, column in enumerate(table.T)}
    whole = raw(**columns)
    parts = [{name: column[part] for name, column in whole.items()} for part in (slice(0, cut), slice(cut, None))]
    parts = [part for part in parts if len(part["label"])]
    if empty := [name for name, column in columns.items() if np.isnan(column).all()]:
        with pytest.raises(DataError, match=f"column {empty[0]}: is missing in every training row"):
            TASK.fit(parts)
        return
    learnt = TASK.fit(parts)
    assert learnt.features == tuple(columns)
    np.testing.assert_allclose(learnt.mean, np.nanmean(table, 0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(learnt.deviation, np.nanstd(table, 0), rtol=1e-6, atol=1e-9)
    z = standardized(learnt, whole)
    assert np.isfinite(z).all()
    assert (z[np.isnan(table)] == 0).all()


@given(value=st.floats(-1e30, 1e30), rows=st.integers(2, 9))
def test_a_constant_column_is_silenced_and_never_divided_by_zero(value: float, rows: int) -> None:
    columns = raw(constant=np.full(rows, value), other=np.arange(rows))
    assert (standardized(TASK.fit([columns]), columns)[:, 0] == 0).all()


def test_a_column_far_from_zero_keeps_its_deviation() -> None:
    times = 1_700_000_000 + np.arange(100.0)
    learnt = TASK.fit([raw(time=times[:30]), raw(time=times[30:])])
    assert learnt.deviation[0] == pytest.approx(np.arange(100).std(), rel=1e-9)


def test_a_missing_number_counts_as_the_mean_of_the_training_rows() -> None:
    encoded = TASK.encode(raw(age=[GAP, 50], height=np.array([2.0, None], dtype=object)), LEARNT)
    np.testing.assert_array_equal(encoded["features"], [[45.0, 2.0], [50.0, 1.7]])


@pytest.mark.parametrize(
    "column",
    [np.array([1, 0, 1, 1], np.int8), np.array([True, False, True, True]), np.array([1, 0, Decimal(1), True], dtype=object)],
    ids=["whole", "bool", "objects"],
)
def test_whole_numbers_yes_and_no_and_decimals_are_numbers(column: np.ndarray) -> None:
    assert TASK.fit([raw(a=column)]).mean == (0.75,)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_a_number_out_of_bounds_is_refused_by_column_and_row(value: float) -> None:
    with pytest.raises(DataError, match=r"column height: .* is too large") as error:
        TASK.encode(raw(age=[1, 2, 3], height=[1.0, GAP, value]), LEARNT)
    assert error.value.row == 2


@pytest.mark.parametrize("fill", [1.5, None])
def test_text_is_refused_by_column_and_row_when_learning_and_when_encoding(fill: float | None) -> None:
    table = raw(age=[1, 2, 3], height=np.array([fill, fill, "tall"], dtype=object))
    for use in (lambda: TASK.fit([table]), lambda: TASK.encode(table, LEARNT)):
        with pytest.raises(DataError, match=r"column height: 'tall' is not a number; leave a missing number empty, and name") as error:
            use()
        assert error.value.row == 2


def test_of_a_column_that_one_cell_makes_text_that_cell_is_named() -> None:
    with pytest.raises(DataError, match=r"column a: '\?' is not a number") as error:
        TASK.fit([raw(a=np.array(["5", "1", "?", "4"], dtype=object))])
    assert error.value.row == 2


def test_dates_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"column a: '2026-01-01.*' is not a number"):
        TASK.fit([raw(a=np.array(["2026-01-01", "2026-01-02"], "M8[ns]"))])


def test_numbers_written_as_text_count_as_numbers() -> None:
    assert TASK.fit([raw(a=np.array(["1", " 2.5e0 ", None], dtype=object), label=np.array(["x", "y", "x"], dtype=object))]).mean == (1.75,)


def test_a_column_of_arrays_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"column image: a value of it is an array of \(8, 8\)"):
        TASK.fit([raw(image=np.zeros((4, 8, 8)))])


# ---- scores


class Fixed(nn.Module):
    """Says the features themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_loss_and_accuracy_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 3, (50, 1 if classes == 2 else classes))
    truth = rng.integers(0, classes, 50)
    batch = {"features": torch.from_numpy(logits), "label": torch.from_numpy(truth)}
    p = TASK.predict(Fixed(), batch)["probabilities"].numpy()
    both = np.hstack([np.zeros((50, 1)), logits]) if classes == 2 else logits
    exact = np.exp(both) / np.exp(both).sum(1, keepdims=True)
    np.testing.assert_allclose(p, exact, rtol=1e-5)
    scores = TASK.step(Fixed(), batch)
    assert scores["loss"].value == pytest.approx(log_loss(truth, exact, labels=range(classes)), rel=1e-5)
    assert scores["accuracy"].value == accuracy_score(truth, p.argmax(1))
    assert scores["loss"].count == 50


def test_a_sure_mistake_costs_what_its_logit_says_and_not_infinity() -> None:
    batch = {"features": torch.tensor([[-200.0]]), "label": torch.tensor([1])}
    assert TASK.step(Fixed(), batch)["loss"].value == pytest.approx(200)
    assert TASK.predict(Fixed(), batch)["probabilities"].tolist() == [[1.0, 0.0]]


def test_a_small_probability_keeps_its_digits() -> None:
    p = TASK.predict(Fixed(), {"features": torch.tensor([[30.0]])})["probabilities"]
    assert p[0, 0].item() == pytest.approx(np.exp(-30), rel=1e-5)  # one minus the other would be zero in float32


def test_two_classes_are_told_apart_by_one_output() -> None:
    assert [TASK.outputs(LEARNT.model_copy(update={"classes": tuple("abcd"[:k])})) for k in (2, 3, 4)] == [1, 3, 4]


def test_the_figures_count_rows_and_state_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    truth, second = np.array([0, 1] * 20), rng.random(40)
    outputs = {"probabilities": np.stack([1 - second, second], 1)}
    figures = TASK.figures(nn.Identity(), outputs, Columns(label=truth), LEARNT)
    assert figures["confusion_matrix"].axes[0].get_title() == f"{((second > 0.5) == truth).sum()} of 40 rows right"
    (legend,) = [text.get_text() for text in figures["roc_curves"].axes[0].get_legend().get_texts()]
    assert legend == f"yes (AUC = {roc_auc_score(truth, second):.2f})"


def test_a_class_that_no_test_row_has_gets_no_curve() -> None:
    learnt = LEARNT.model_copy(update={"classes": ("a", "b", "c")})
    outputs = {"probabilities": np.eye(3)[[0, 1, 1, 0]]}
    figure = TASK.figures(nn.Identity(), outputs, Columns(label=np.array([0, 1, 0, 1])), learnt)["roc_curves"]
    assert [text.get_text()[0] for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


# ---- a registered model


def served() -> Served:
    torch.manual_seed(0)
    return Served(TASK, LEARNT, TASK.network(LEARNT))


TABLE = pd.DataFrame({"name": ["Ann", "Bo"], "height": [1.5, np.nan], "age": [33, 44]})


@pytest.mark.parametrize(
    "same",
    [
        TABLE[["age", "height"]],
        TABLE.set_index(pd.Index([7, 7])),
        TABLE.to_dict("records"),
        TABLE.to_dict("list"),
        [{"age": 33, "height": 1.5}, {"age": 44}],
        [{"age": 33, "height": 1.5}, {"age": 44, "height": None}],
        TABLE.astype({"age": "Int64", "height": "Float64"}),
        TABLE.astype(object),
    ],
    ids=["exactly the features", "another index", "dicts", "lists", "without a key", "with None", "nullable types", "objects"],
)
def test_a_table_is_answered_the_same_in_whatever_form_it_comes(same: Any) -> None:
    expected = served().predict(TABLE)
    pd.testing.assert_frame_equal(served().predict(same), expected)
    assert expected["label"].isin(["no", "yes"]).all()
    assert [sum(p) for p in expected["probabilities"]] == pytest.approx([1, 1])


def test_no_rows_get_no_answers() -> None:
    assert served().predict(TABLE[:0]).empty


def test_a_missing_column_is_refused_with_the_nearest_of_those_given() -> None:
    with pytest.raises(DataError, match=r"no column 'height'; did you mean hight\?; columns: hight, age"):
        served().predict(pd.DataFrame({"hight": [1.0], "age": [2]}))


def test_a_column_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match="column age: was given more than once"):
        served().predict(pd.DataFrame([[1, 2, 3]], columns=["age", "age", "height"]))


@pytest.mark.parametrize("nothing", [None, "a text", 3, {"age": 1, "height": 2}, np.zeros((2, 2))], ids=repr)
def test_what_is_no_table_is_refused(nothing: Any) -> None:
    with pytest.raises(DataError, match=r"a table .* was expected|there is no column 'age'"):
        served().predict(nothing)


def test_text_in_a_table_is_refused_by_column_and_row() -> None:
    with pytest.raises(DataError, match="column age: 'old' is not a number") as error:
        TASK.serving(LEARNT).inputs(pd.DataFrame({"age": [1, "old"], "height": [1, 2]}))
    assert error.value.row == 1


def test_an_example_of_the_input_may_have_gaps_in_any_column() -> None:
    example = TASK.serving(LEARNT).example(SIZES)
    assert dict(example.dtypes) == {"age": np.float64, "height": np.float64}
    np.testing.assert_array_equal(TASK.serving(LEARNT).inputs(example)["features"], TASK.encode(SIZES, LEARNT)["features"])


# ---- whole runs on a file


def csv(folder: Path, label: Sequence[str]) -> Path:
    """Three clouds of points, one for each of `label`'s kinds a, b, c; a tenth of the numbers are missing."""
    rng = np.random.default_rng(0)
    place = np.array([{"a": 0, "b": 4, "c": 8}.get(name, 0) for name in label])
    table = pd.DataFrame({"x": place + rng.normal(size=len(label)), "kind": label, "y": rng.normal(size=len(label)) - place, "one": 1})
    table.loc[rng.random(len(label)) < 0.1, "y"] = None
    path = folder / "points.csv"
    table.to_csv(path, index=False)
    return path


def test_a_table_of_three_classes_with_gaps_is_learnt(tmp_path: Path) -> None:
    path = csv(tmp_path, ["a", "b", "c"] * 100)
    overrides = [f"data.source={path}", "data.columns.label=kind", "train.epochs=10", "optim.lr=0.02"]
    outcome = runs.alone(runs.job(tmp_path, tmp_path / "run", *overrides, recipe="mlp_binary"))
    assert outcome.metrics["test/accuracy"] > 0.9
    assert outcome.outputs["probabilities"].shape[1] == 3


@pytest.mark.parametrize("split", [0, 1, 2], ids=["training", "validation", "test"])
def test_a_class_with_one_row_is_learnt_from_the_training_rows_and_refused_elsewhere_by_row(tmp_path: Path, split: int) -> None:
    run = runs.load(tmp_path, "data.columns.label=kind", recipe="mlp_binary")
    row = int(np.flatnonzero(split_of(0, 300, shares=run.data.splits.sizes, seed=0) == split)[0])
    label = ["a", "b", "c"] * 100
    label[row] = "rare"
    drawn = ("data.columns.label=kind", "data.splits.stratify=false")  # else a class of one row is always trained on
    run = runs.load(tmp_path, *drawn, f"data.source={csv(tmp_path, label)}", recipe="mlp_binary")
    plan = preparation.plan(run)
    if split == 0:
        assert preparation.prepare(run, plan, preparation.in_process).manifest.encoding["classes"] == ["a", "b", "c", "rare"]
    else:
        with pytest.raises(DataError, match=f"points.csv, row {row}: column label: 'rare' is outside the classes a, b, c"):
            preparation.prepare(run, plan, preparation.in_process)
