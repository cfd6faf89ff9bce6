"""Models that are judged: what no whole run shows, such as a class that does not occur, and scores in the terms of another model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from workloads.judging import joined
from workloads.judging import metrics as all_metrics
from workloads.tasks.forecasting import SeriesEncoding
from workloads.tasks.judged import ClassJudging, ForecastJudging

RNG = np.random.default_rng(0)


def judged(classes, truth, p):
    judging = ClassJudging(classes)
    return judging, judging.judge({"probabilities": np.asarray(p, np.float32)}, {"label": np.asarray(truth)})


def test_a_class_that_does_not_occur_counts_neither_for_nor_against():
    truth = RNG.integers(0, 3, 200)
    p = RNG.dirichlet(np.ones(4), 200)
    judging, found = judged("abcd", truth, p)
    numbers = all_metrics(judging, found)
    said = p.argmax(1)
    recall = metrics.recall_score(truth, said, labels=[0, 1, 2], average="macro")
    assert numbers["recall"] == pytest.approx(recall)
    assert "class/d/recall" not in numbers
    areas = [metrics.roc_auc_score(truth == k, p[:, k]) for k in range(3)]
    assert numbers["roc_auc"] == pytest.approx(np.mean(areas), abs=1e-6)


def test_rows_of_one_class_have_no_roc_curve_and_all_else():
    judging, found = judged("ab", np.zeros(20, int), RNG.dirichlet(np.ones(2), 20))
    numbers = all_metrics(judging, found)
    assert math.isnan(numbers["roc_auc"])
    assert 0 <= numbers["accuracy"] <= 1
    assert "roc_curves" in judging.figures(found)


def test_an_impossible_truth_costs_much_and_not_infinitely_much():
    judging, found = judged("ab", [0], [[0.0, 1.0]])
    assert 80 < all_metrics(judging, found)["loss"] < 100


def test_answers_in_another_order_of_the_classes_are_put_into_this_one():
    p = RNG.dirichlet(np.ones(3), 50)
    truth = RNG.integers(0, 3, 50)
    here, expected = judged("abc", truth, p)
    order = [2, 0, 1]  # c, a, b
    there, theirs = judged("cab", np.array([1, 2, 0])[truth], p[:, order])
    found = here.aligned(theirs, there)
    np.testing.assert_array_equal(found.columns["truth"], expected.columns["truth"])
    np.testing.assert_allclose(found.columns["probabilities"], expected.columns["probabilities"])
    with pytest.raises(ValueError, match="its classes are x, y, not a, b, c"):
        here.aligned(theirs, ClassJudging("xy"))


def test_pieces_joined_are_the_whole():
    p = RNG.dirichlet(np.ones(3), 30)
    truth = RNG.integers(0, 3, 30)
    judging, whole = judged("abc", truth, p)
    parts = [judged("abc", truth[low:high], p[low:high])[1] for low, high in [(0, 11), (11, 12), (12, 30)]]
    assert all_metrics(judging, joined(parts)) == all_metrics(judging, whole)


def test_more_than_twenty_classes_are_judged_without_roc_curves():
    judging, found = judged([str(k) for k in range(21)], RNG.integers(0, 21, 100), RNG.dirichlet(np.ones(21), 100))
    assert "roc_auc" not in all_metrics(judging, found)
    assert set(judging.figures(found)) == {"confusion_matrix", "reliability"}


# ---- forecasts


def judging(mean, deviation, horizon=2, names=("demand",)):
    encoding = SeriesEncoding(names=names, mean=(mean,) * len(names), deviation=(deviation,) * len(names))
    return ForecastJudging(encoding, len(names), window=3, horizon=horizon)


def test_errors_of_another_scale_are_put_into_this_one():
    """By hand: a forecast that is off by 5 in own units is off by a half where the deviation is 10, by 1 where it is 5."""
    wide, narrow = judging(100.0, 10.0), judging(50.0, 5.0)
    truth = RNG.normal(size=(8, 2, 1))
    values = np.concatenate([np.zeros((8, 3, 1)), truth], axis=1)
    by_narrow = narrow.judge({"forecast": truth + 1}, {"values": values})
    assert by_narrow.scores["mse"].value == pytest.approx(1)
    found = wide.aligned(by_narrow, narrow)
    assert found.scores["mse"].value == pytest.approx(0.25)
    np.testing.assert_allclose(wide._encoding.original(found.columns["truth"]), narrow._encoding.original(truth))


def test_forecasts_of_other_rows_or_other_series_are_no_rivals():
    values = {"values": np.zeros((4, 6, 1))}
    longer = judging(0.0, 1.0, horizon=3)
    found = longer.judge({"forecast": np.zeros((4, 3, 1))}, values)
    with pytest.raises(ValueError, match="it forecasts 3 rows of demand, not 2 rows of price"):
        judging(0.0, 1.0, names=("price",)).aligned(found, longer)


def test_several_targets_are_judged_together_and_by_steps_ahead():
    several = judging(0.0, 1.0, names=("a", "b"))
    truth, error = RNG.normal(size=(5, 2, 2)), RNG.normal(size=(5, 2, 2))
    values = np.concatenate([np.zeros((5, 3, 2)), truth], axis=1)
    found = several.judge({"forecast": truth + error}, {"values": np.concatenate([values, np.zeros((5, 5, 1))], axis=2)})
    assert found.scores["mse"].value == pytest.approx((error**2).mean())
    assert several.part_scores(found)["horizon/2/mae"].value == pytest.approx(np.abs(error[:, 1]).mean())
    assert several.table(found)["forecast"].shape == (5, 2, 2)
