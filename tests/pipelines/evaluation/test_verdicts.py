"""Is the better of two really better: worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.row_scores import RowScores
from pipelines.evaluation.verdicts import verdicts
from pipelines.tracking.lookup import TrackedRun
from workloads.judging import Score

ROWS = 200


def answers(wrong, *, name, headline="max accuracy", data="d" * 16, rows=ROWS):
    """(a run, its scores by row): all right but for the rows `wrong`."""
    right = np.ones(rows)
    right[list(wrong)] = 0
    metric = headline.split()[1]
    tags = {"raylway.headline": headline, "data.fingerprint": data}
    run = TrackedRun("0" * 32, name, "1", "FINISHED", 0.0, 1.0, {}, {f"test/{metric}": right.mean()}, tags)
    return run, RowScores({metric: Score(right, np.ones(rows))}, 1)


def test_mcnemar_counts_only_the_rows_where_two_models_differ():
    headline, [verdict] = verdicts([answers(range(20), name="poor"), answers(range(10, 20), name="good")])
    assert headline == "test/accuracy"
    assert (verdict.best, verdict.other, verdict.same_rows) == ("good", "poor", True)
    assert verdict.difference.value == pytest.approx(10 / ROWS)
    assert verdict.p == pytest.approx(2 * 0.5**10)
    assert verdict.real
    assert "good against poor: accuracy +0.0500 [+0.0" in str(verdict)
    assert "the difference is real (p = 0.002, McNemar's exact test, 10 : 0, the same test rows)" in str(verdict)


def test_few_rows_are_luck():
    _, [verdict] = verdicts([answers([1, 2, 3], name="a"), answers([3], name="b")])
    assert verdict.p == pytest.approx(0.5)
    assert not verdict.real
    assert "it may be the luck of the test rows" in str(verdict)


def test_several_comparisons_are_corrected_as_holm_says():
    wrong = {"best": 0, "six": 6, "eight": 8, "3": 3}
    _, found = verdicts([answers(range(count), name=name) for name, count in wrong.items()])
    raw = {"3": 2 * 0.5**3, "six": 2 * 0.5**6, "eight": 2 * 0.5**8}
    assert {verdict.other: verdict.p for verdict in found} == pytest.approx(
        {"eight": 3 * raw["eight"], "six": 2 * raw["six"], "3": raw["3"]},
    )
    assert {verdict.other for verdict in found if verdict.real} == {"eight"}
    assert raw["six"] < 0.05 < 2 * raw["six"], "real by itself, but not as one of three"


def test_equal_answers_are_said_to_be_equal():
    _, [verdict] = verdicts([answers([5], name="a"), answers([5], name="b")])
    assert str(verdict) == "a and b are equal in accuracy"
    assert (verdict.p, verdict.real) == (1.0, False)


def test_other_rows_are_not_paired():
    sides = [answers(range(60), name="poor", data="e" * 16, rows=300), answers(range(10), name="good")]
    _, [verdict] = verdicts(sides)
    assert (verdict.same_rows, verdict.difference.test, verdict.real) == (False, "bootstrap of each", True)
    deviation = np.sqrt(0.8 * 0.2 / 300 + 0.95 * 0.05 / ROWS)
    assert verdict.difference.value == pytest.approx(0.15)
    assert np.ptp(verdict.difference.interval) == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_less_is_better_where_the_headline_says_so():
    _, [verdict] = verdicts([answers(range(50), name="few", headline="min mse"), answers([], name="many", headline="min mse")])
    assert verdict.best == "few"


def test_there_is_no_verdict_over_different_metrics_or_without_scores_by_row():
    one, other = answers([1], name="a"), answers([2], name="b", headline="min mse")
    assert verdicts([one, other]) == (None, [])
    assert verdicts([one, (answers([2], name="b")[0], None)]) == ("test/accuracy", [])
