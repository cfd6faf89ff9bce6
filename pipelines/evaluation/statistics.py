"""Bootstrap intervals of metrics, and significance tests of two models.

A *unit* is resampled as a whole: a row where rows are independent, a block of consecutive rows where they are not (windows over one series,
parts of one text; Carlstein, 1986). Above 20,000 rows, blocks are resampled too: that changes nothing for independent rows and is quicker.
An interval covers other draws of test rows, not other trainings. It is a percentile interval: that of a perfect score is a single point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from workloads.judging import Score

CONFIDENCE = 0.95
_RESAMPLES, _DEAR_RESAMPLES = 2000, 400
_MOST_UNITS = 20_000
_DRAWN_AT_ONCE = 1 << 22
_FEWEST_UNITS = 5
"""Fewer units get no interval: it would be far too narrow."""

# U units, R resamples


class Interval(NamedTuple):
    """The 95 % confidence interval of a metric."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One model's metric minus another's, its interval, and the two-sided p-value of `test`."""

    value: float
    interval: Interval | None
    p: float
    test: str


def block_of(rows: int, span: int) -> int:
    """The number of consecutive rows that are resampled together, where `span` of them share data with one another (1: none do).

    Dependent rows: the span, or the cube root of their number if that is more (Künsch, 1989). Independent ones: one, up to 20,000 rows.
    """
    if span > 1:
        return max(span, math.ceil(rows ** (1 / 3)))
    return max(1, math.ceil(rows / _MOST_UNITS))


def interval(score: Score, *, block: int = 1, seed: int = 0) -> Interval | None:
    """The bootstrap interval of sum(total) / sum(count), by scipy. None where there are too few units."""
    total_U, count_U = (_summed(each, block) for each in (score.total, score.count))
    there = count_U > 0
    total_U, count_U = total_U[there], count_U[there]
    if len(total_U) < _FEWEST_UNITS:
        return None
    return _bootstrapped(total_U, count_U, seed)


def intervals(of: Callable[[np.ndarray], Mapping[str, float]], rows: int, *, block: int = 1, seed: int = 0) -> dict[str, Interval]:
    """The bootstrap intervals of all metrics that `of` computes from rows (their numbers, with repeats).

    For metrics that are no sum over rows: each resample costs a call. A metric that a resample does not have (the recall of a class that is
    not in it) is left out of that resample.
    """
    drawn = _resampled(of, rows, block=block, seed=seed)
    return {name: _between(values) for name, values in drawn.items() if np.isfinite(values).any()}


def paired(ours: Score, theirs: Score, *, block: int = 1, seed: int = 0) -> Difference:
    """The difference of two models' scores on the same rows: its bootstrap interval, and the p-value of a paired permutation test (scipy).

    A permutation exchanges the two models' totals of some units, so no distribution of errors is assumed. Raises ValueError where the two
    do not count the same rows.
    """
    from scipy.stats import permutation_test

    if not np.array_equal(ours.count, theirs.count):
        raise ValueError("two models' scores can be compared only where both count the same rows")
    count_U = _summed(ours.count, block)
    apart_U = _summed(ours.total, block) - _summed(theirs.total, block)
    apart_U, count_U = apart_U[count_U > 0], count_U[count_U > 0]
    value = float(apart_U.sum() / count_U.sum())
    if len(apart_U) < _FEWEST_UNITS or not apart_U.any():
        return Difference(value, None, 1.0, "paired permutation test")
    tested = permutation_test(
        (apart_U,),
        lambda apart, axis=-1: apart.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _DRAWN_AT_ONCE // len(apart_U)),
        rng=np.random.default_rng(seed),
    )
    return Difference(value, _bootstrapped(apart_U, count_U, seed), float(tested.pvalue), "paired permutation test")


def difference(ours: Score, theirs: Score, *, block: int) -> Difference:
    """The difference of two models' scores on the same rows: by `mcnemar` where every row is either right or wrong, else by `paired`."""
    if block == 1 and all((score.count == 1).all() and np.isin(score.total, (0, 1)).all() for score in (ours, theirs)):
        return mcnemar(ours.total == 1, theirs.total == 1)
    return paired(ours, theirs, block=block)


def unpaired(ours: Score, theirs: Score, *, blocks: tuple[int, int] = (1, 1), seed: int = 0) -> Difference:
    """The difference of two models' scores on different rows, by the bootstrap of each; p is twice the share of differences beyond zero.

    Less powerful than `paired`, which compares the models on each row.
    """
    drawn = []
    for number, (score, block) in enumerate(zip((ours, theirs), blocks, strict=True)):
        total_U, count_U = (_summed(each, block) for each in (score.total, score.count))
        if len(total_U) < _FEWEST_UNITS:
            return Difference(ours.value - theirs.value, None, 1.0, "bootstrap of each")
        drawn.append(_drawn(total_U[count_U > 0], count_U[count_U > 0], seed + number).bootstrap_distribution)
    apart_R = drawn[0] - drawn[1]
    low, high = np.percentile(apart_R, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    beyond = 1 + min(int((apart_R <= 0).sum()), int((apart_R >= 0).sum()))
    p = min(1.0, 2 * beyond / (1 + len(apart_R)))
    return Difference(ours.value - theirs.value, Interval(float(low), float(high)), p, "bootstrap of each")


def apart(of: Callable[[np.ndarray], float], rows: int, *, block: int = 1, seed: int = 0) -> Difference:
    """The difference of two metrics that are no sums over rows: `of` computes it from rows (their numbers, with repeats).

    p is twice the share of bootstrap differences beyond zero (Efron & Tibshirani, 1993), at least one of as many as were drawn.
    """
    drawn = _resampled(lambda index: {"difference": of(index)}, rows, block=block, seed=seed).get("difference", [])
    value = of(np.arange(rows))
    if not len(drawn):
        return Difference(value, None, 1.0, "paired bootstrap")
    beyond = min(np.mean(np.array(drawn) <= 0), np.mean(np.array(drawn) >= 0))
    p = min(1.0, max(2 * float(beyond), 1 / len(drawn)))
    return Difference(value, _between(drawn), p, "paired bootstrap")


def mcnemar(ours_right: np.ndarray, theirs_right: np.ndarray, *, seed: int = 0) -> Difference:
    """The difference of two shares of right answers on the same rows, by McNemar's exact test (1947): only rows where they differ count."""
    from scipy.stats import binomtest

    ours_only, theirs_only = int((ours_right & ~theirs_right).sum()), int((~ours_right & theirs_right).sum())
    differ = ours_only + theirs_only
    p = float(binomtest(ours_only, differ, 0.5).pvalue) if differ else 1.0
    one = np.ones(len(ours_right))
    apart = Score(ours_right.astype(np.float64) - theirs_right.astype(np.float64), one)
    return Difference(apart.value, interval(apart, seed=seed), p, f"McNemar's exact test, {ours_only} : {theirs_only}")


def derived(found: Interval | None, function: Callable[[float], float]) -> Interval | None:
    """The interval of an increasing function of a metric, from the metric's own interval."""
    return Interval(function(found.low), function(found.high)) if found else None


def _bootstrapped(total_U: np.ndarray, count_U: np.ndarray, seed: int) -> Interval:
    found = _drawn(total_U, count_U, seed).confidence_interval
    return Interval(float(found.low), float(found.high))


def _drawn(total_U: np.ndarray, count_U: np.ndarray, seed: int) -> Any:
    """scipy's bootstrap of sum over count: its interval, and every value that was drawn."""
    from scipy.stats import bootstrap

    def ratio(total: np.ndarray, count: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis=axis) / count.sum(axis=axis)

    return bootstrap(
        (total_U, count_U),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _DRAWN_AT_ONCE // len(total_U)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )


def _summed(values: np.ndarray, block: int) -> np.ndarray:
    """Sums over blocks of consecutive rows; the last may be shorter."""
    return values if block == 1 else np.add.reduceat(values, np.arange(0, len(values), block))


def _resampled(of: Callable[[np.ndarray], Mapping[str, float]], rows: int, *, block: int, seed: int) -> dict[str, list[float]]:
    """The metrics of many resamples of rows, by name; none where there are too few units."""
    units = -(-rows // block)
    if units < _FEWEST_UNITS:
        return {}
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(_DEAR_RESAMPLES if rows <= _MOST_UNITS else _DEAR_RESAMPLES // 4):
        begin_U = generator.integers(0, units, units) * block
        index = (begin_U[:, None] + np.arange(block)).reshape(-1)
        for name, value in of(index[index < rows]).items():
            found.setdefault(name, []).append(value)
    return found


def _between(values: list[float]) -> Interval:
    return Interval(*map(float, np.nanpercentile(values, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])))
