"""Forecasts that are judged in the units of another model, and several targets at once."""

from __future__ import annotations

import numpy as np
import pytest

from workloads.tasks.judged_numbers import ForecastJudging

RNG = np.random.default_rng(0)


def judging(mean, deviation, horizon=2, names=("demand",)):
    return ForecastJudging(
        names=names, restored=lambda z: z * deviation + mean, standardised=lambda x: (x - mean) / deviation, window=3, horizon=horizon
    )


def test_errors_of_another_scale_are_put_into_this_one():
    """By hand: a forecast that is off by 5 in own units is off by a half where the deviation is 10, by 1 where it is 5."""
    wide, narrow = judging(100.0, 10.0), judging(50.0, 5.0)
    truth = RNG.normal(size=(8, 2, 1))
    values = np.concatenate([np.zeros((8, 3, 1)), truth], axis=1)
    by_narrow = narrow.judge({"forecast": truth + 1}, {"values": values})
    assert by_narrow.scores["mse"].value == pytest.approx(1)
    found = wide.aligned(by_narrow, narrow)
    assert found.scores["mse"].value == pytest.approx(0.25)
    np.testing.assert_allclose(wide._restored(found.columns["truth"]), narrow._restored(truth))


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
