"""Scores of predictions, example by example: metrics, intervals, slices and significance tests all follow from them.

A task gives a Judging; what is done with the scores (intervals, tests, pages) is not its business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# N examples


@dataclass(frozen=True)
class Score:
    """Contributions of the examples to a metric, float64 (N,) both: the metric is sum(total) / sum(count)."""

    total: np.ndarray
    count: np.ndarray

    @property
    def value(self) -> float:
        return float(self.total.sum() / self.count.sum())

    def take(self, index: np.ndarray) -> Score:
        return Score(self.total[index], self.count[index])


@dataclass(frozen=True)
class Judged:
    """Examples, the predictions for them, and their scores."""

    columns: Mapping[str, np.ndarray]
    """The truth and the predictions, arrays with examples first."""
    scores: Mapping[str, Score]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: np.ndarray) -> Judged:
        """Examples `index`, in that order."""
        return Judged(
            {name: column[index] for name, column in self.columns.items()}, {name: score.take(index) for name, score in self.scores.items()}
        )


def joined(parts: Sequence[Judged]) -> Judged:
    """Concatenate, in order."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    scores = {
        name: Score(*(np.concatenate([getattr(part.scores[name], field) for part in parts]) for field in ("total", "count")))
        for name in parts[0].scores
    }
    return Judged(columns, scores)


class Judging(ABC):
    """The metrics of one model's predictions: those of the training's curves, by the same names, and more."""

    derived: ClassVar[Mapping[str, tuple[str, Callable[[float], float]]]] = {}
    """Metrics that are a rising function of a score, such as a root of it: name -> (score, function). Models are tested by that score."""

    @property
    def span(self) -> int:
        """Number of consecutive examples that share rows of the data with one another: 1 where none does."""
        return 1

    @property
    def row_offset(self) -> int | None:
        """Stored row whose columns put an example into a slice, counted from the example's own number; None where no row stands for it."""
        return 0

    @abstractmethod
    def judge(self, outputs: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> Judged:
        """Score the outputs of `Workload.predict` for examples."""

    def from_means(self, means: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the curves, from the means of what `Workload.step` gave over all rows (of a batch, or of a split).

        Here a task derives what is no mean over rows (a root, a ratio) and turns means into the unit of its metrics. `loss` stays.
        """
        return dict(means)

    def aligned(self, judged: Judged, by: Judging) -> Judged:
        """Judge predictions of another model in the terms of this one: its units, its order of classes, the same `columns["truth"]`.

        Raises ValueError, with a sentence, where the two predict different things.
        """
        return judged

    def joint_metrics(self, judged: Judged) -> dict[str, float]:
        """Metrics that are no sum over examples, of all examples and, as group/name/metric, of groups of them."""
        return {}

    def part_scores(self, judged: Judged) -> dict[str, Score]:
        """Scores of parts of each example, as group/name/metric, such as horizon/1/mse."""
        return {}

    @abstractmethod
    def table(self, judged: Judged) -> dict[str, Any]:
        """A readable table with a row for each example: column -> values (an array, or a list)."""

    def details(self, judged: Judged) -> dict[str, Any]:
        """Further findings on all examples, as JSON."""
        return {}

    @abstractmethod
    def figures(self, judged: Judged) -> dict[str, Figure]:
        """Pictures for the run page, by name."""


def metrics(judging: Judging, judged: Judged) -> dict[str, float]:
    """Every metric of all examples."""
    means = {name: score.value for name, score in {**judged.scores, **judging.part_scores(judged)}.items()}
    derived = {name: function(means[of]) for name, (of, function) in judging.derived.items()}
    return means | derived | judging.joint_metrics(judged)


class ErrorJudging(Judging):
    """Squared and absolute errors of numbers (N, …); the loss is the mean squared error in units of `deviation`."""

    derived: ClassVar[Mapping[str, tuple[str, Callable[[float], float]]]] = {"rmse": ("mse", math.sqrt)}
    deviation = 1.0

    def compared(self, truth_N: np.ndarray, predicted_N: np.ndarray) -> Judged:
        error_N = predicted_N - truth_N
        squared, absolute = over_examples(np.square(error_N)), over_examples(np.abs(error_N))
        loss = squared if self.deviation == 1 else over_examples(np.square(error_N / self.deviation))
        return Judged({"truth": truth_N, "predicted": predicted_N}, {"mse": squared, "mae": absolute, "loss": loss})

    def aligned(self, judged: Judged, by: Judging) -> Judged:
        return self.compared(judged.columns["truth"], judged.columns["predicted"])

    def table(self, judged: Judged) -> dict[str, Any]:
        truth_N, predicted_N = judged.columns["truth"], judged.columns["predicted"]
        return {"truth": truth_N, "predicted": predicted_N, "error": predicted_N - truth_N}


def over_examples(each_N: np.ndarray) -> Score:
    """The Score of values (N, …), of which each example has as many."""
    flat = each_N.reshape(len(each_N), -1)
    return Score(flat.sum(1), np.full(len(flat), float(flat.shape[1])))
