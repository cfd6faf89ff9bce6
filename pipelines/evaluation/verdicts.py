"""Is the best of several runs really better than each of the others, or is it the luck of the test rows?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.evaluation import statistics
from pipelines.evaluation.row_scores import RowScores
from pipelines.evaluation.statistics import Difference
from pipelines.tracking import lookup
from pipelines.tracking.lookup import TrackedRun
from workloads.judging import Score

LEVEL = 0.05
"""A difference is called real where one as large would come by chance less often than this."""


@dataclass(frozen=True)
class Verdict:
    """How far the best run is ahead of another one, by its headline metric on test rows."""

    best: str
    other: str
    metric: str
    difference: Difference
    p: float
    """Corrected for as many comparisons as there are (Holm, 1979)."""
    same_rows: bool

    @property
    def real(self) -> bool:
        return self.p < LEVEL

    def as_json(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "other": self.other,
            "metric": f"test/{self.metric}",
            "difference": self.difference.value,
            "interval": list(self.difference.interval) if self.difference.interval else None,
            "p": self.p,
            "test": self.difference.test,
            "same_rows": self.same_rows,
            "real": self.real,
        }

    def __str__(self) -> str:
        apart, interval = self.difference.value, self.difference.interval
        if not apart:
            return f"{self.best} and {self.other} are equal in {self.metric}"
        by = f"{self.metric} {apart:+.4f}" + (f" [{interval.low:+.4f}, {interval.high:+.4f}]" if interval else "")
        on = "the same test rows" if self.same_rows else "other test rows, so less can be seen"
        said = "the difference is real" if self.real else "it may be the luck of the test rows"
        return f"{self.best} against {self.other}: {by}; {said} (p = {self.p:.2g}, {self.difference.test}, {on})"


def verdicts(sides: Sequence[tuple[TrackedRun, RowScores | None]]) -> tuple[str | None, list[Verdict]]:
    """The metric (test/accuracy) by which runs are compared, and the best run against each other one that has test scores by row.

    None and nothing where runs are judged by different metrics.
    """
    scored = [(run, kept) for run, kept in sides if kept is not None and lookup.score(run) is not None]
    headlines = {lookup.headline(run) for run, _ in sides}
    headline = next(iter(headlines)) if len(headlines) == 1 else None
    if headline is None:
        return None, []
    mode, metric = headline
    order = sorted(scored, key=lambda side: lookup.score(side[0]) or 0.0, reverse=mode == "max")
    found = [_verdict(order[0], other, metric) for other in order[1:]]
    return f"test/{metric}", _corrected(found)


def _verdict(best: tuple[TrackedRun, RowScores], other: tuple[TrackedRun, RowScores], metric: str) -> Verdict:
    (ahead, ours), (behind, theirs) = best, other
    mine, yours = ours.scores[metric], theirs.scores[metric]
    same = bool(ahead.fingerprint) and ahead.fingerprint == behind.fingerprint and np.array_equal(mine.count, yours.count)
    blocks = statistics.block_of(len(ours), ours.span), statistics.block_of(len(theirs), theirs.span)
    if not same:
        difference = statistics.unpaired(mine, yours, blocks=blocks)
    elif blocks[0] == 1 and _are_answers(mine) and _are_answers(yours):
        difference = statistics.mcnemar(mine.total == 1, yours.total == 1)
    else:
        difference = statistics.paired(mine, yours, block=max(blocks))
    return Verdict(ahead.name, behind.name, metric, difference, difference.p, same)


def _are_answers(score: Score) -> bool:
    """Whether every row is right or wrong."""
    return bool((score.count == 1).all() and np.isin(score.total, (0, 1)).all())


def _corrected(found: Sequence[Verdict]) -> list[Verdict]:
    """With p-values as Holm corrects them: the smallest times the number of comparisons, the next times one less, none below another."""
    corrected, highest = list(found), 0.0
    for place, index in enumerate(sorted(range(len(found)), key=lambda index: found[index].p)):
        highest = max(highest, min(1.0, (len(found) - place) * found[index].p))
        corrected[index] = replace(found[index], p=highest)
    return corrected
