"""Intervals and tests, against scipy and statsmodels' textbook numbers, and by how often they are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.evaluation import statistics
from workloads.judging import Score


def right(values) -> Score:
    values = np.asarray(values, np.float64)
    return Score(values, np.ones(len(values)))


def test_the_interval_of_a_share_is_about_the_binomial_one():
    share = right(np.arange(400) < 320)
    low, high = statistics.interval(share)
    exact = stats.binomtest(320, 400).proportion_ci(0.95)
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_an_interval_covers_the_truth_about_95_times_in_a_hundred():
    rng = np.random.default_rng(0)
    drawn = [statistics.interval(right(rng.exponential(size=100)), seed=number) for number in range(200)]
    assert 0.90 <= np.mean([low <= 1 <= high for low, high in drawn]) <= 0.99


def test_blocks_cover_where_neighbours_are_alike_and_rows_one_by_one_do_not():
    """A slow wave of errors, as of overlapping windows: rows drawn one by one believe themselves far too much."""
    rng = np.random.default_rng(0)
    covered = {1: 0, 40: 0}
    for number in range(100):
        noise = rng.normal(size=1040)
        error = right(np.convolve(noise, np.ones(40) / 40, "valid")[:1000])
        for block in covered:
            low, high = statistics.interval(error, block=block, seed=number)
            covered[block] += low <= 0 <= high
    assert covered[1] < 45
    assert covered[40] > 85


def test_overlapping_windows_are_drawn_in_blocks_and_rows_are_not():
    assert [statistics.block_of(500, 1), statistics.block_of(500, 72), statistics.block_of(1_000_000, 72)] == [1, 72, 100]
    assert statistics.block_of(100_000, 1) == 5


def test_a_ratio_is_weighted_by_what_it_counts():
    score = Score(np.array([10.0, 0, 0, 0, 0, 0] * 50), np.array([10.0, 1, 1, 1, 1, 1] * 50))
    low, high = statistics.interval(score)
    assert score.value == pytest.approx(10 / 15)
    assert low < 10 / 15 < high


def test_too_few_units_have_no_interval():
    assert statistics.interval(right([1, 0, 1])) is None
    assert statistics.interval(right(np.ones(100)), block=50) is None
    assert statistics.intervals(lambda index: {"x": 1.0}, 3) == {}


def test_numbers_that_are_no_sums_have_intervals_as_well():
    values = np.random.default_rng(0).normal(size=500)
    found = statistics.intervals(lambda index: {"median": float(np.median(values[index]))}, 500)
    drawn = stats.bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(1))
    expected = drawn.confidence_interval
    assert tuple(found["median"]) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_mcnemar_is_the_exact_one():
    """Of 1,000 rows, 20 are right by ours alone and 8 by theirs alone: p is twice the tail of 28 fair coins (by hand: 0.0357)."""
    ours, theirs = np.ones(1000, bool), np.ones(1000, bool)
    theirs[:20] = False
    ours[20:28] = False
    found = statistics.mcnemar(ours, theirs)
    tail = sum(stats.binom.pmf(k, 28, 0.5) for k in range(9))
    assert found.p == pytest.approx(2 * tail) == pytest.approx(0.0357, abs=1e-4)
    assert found.value == pytest.approx(0.012)
    assert found.interval.low < 0.012 < found.interval.high
    assert found.test == "McNemar's exact test, 20 : 8"


def test_the_same_answers_are_no_difference():
    same = np.arange(100) % 3 > 0
    assert (statistics.mcnemar(same, same).p, statistics.paired(right(same), right(same)).p) == (1.0, 1.0)


def test_a_paired_test_sees_what_an_unpaired_one_cannot():
    rng = np.random.default_rng(0)
    hard = rng.exponential(size=300)
    ours, theirs = right(hard), right(hard + 0.05 + 0.05 * rng.normal(size=300))
    found = statistics.paired(ours, theirs)
    assert stats.ttest_ind(ours.total, theirs.total).pvalue > 0.3
    assert found.p < 0.01
    assert found.interval.high < 0
    assert found.value == pytest.approx(-0.05, abs=0.01)


def test_the_paired_test_agrees_with_the_one_of_student_on_normal_differences():
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(size=200), rng.normal(size=200) + 0.15
    assert statistics.paired(right(ours), right(theirs)).p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, abs=0.02)


def test_scores_of_other_rows_are_not_compared():
    with pytest.raises(ValueError, match="count the same rows"):
        statistics.paired(right(np.ones(10)), Score(np.ones(10), np.arange(10.0)))
