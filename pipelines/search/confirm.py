"""Confirm a sweep: train the best settings anew with other seeds, and test if the winner differs from the others beyond chance.

The best of many trials is lucky as well as good, so its own score is too high. Seeds that the search never used give an honest one. The
winner is chosen by the validation rows; the test rows, scored here for the first time, only measure it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.search.ledger import Ledger, Trial
from pipelines.search.space import Params, key_of
from pipelines.search.study import Study

_SEED = "train.seed"
_LEVEL = 0.95


@dataclass(frozen=True)
class Entrant:
    """Settings to confirm: those of a trial, or the recipe's own."""

    name: str
    params: Params

    def with_seed(self, seed: int) -> Params:
        return {**self.params, _SEED: seed}


@dataclass(frozen=True)
class Scores:
    """An entrant's scores with each seed: on the validation rows, which rank it, and on the test rows."""

    entrant: Entrant
    trials: list[Trial]
    validation: list[float]
    test: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.test)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t); None for a single seed."""
        if len(self.test) < 2:
            return None
        from scipy.stats import t

        return float(t.ppf((1 + _LEVEL) / 2, len(self.test) - 1)) * statistics.stdev(self.test) / len(self.test) ** 0.5

    def as_json(self, metric: str) -> dict[str, Any]:
        settings = {"entrant": self.entrant.name, "params": self.entrant.params, "metric": metric}
        return settings | {"mean": self.mean, "half_width": self.half_width, "values": self.test}

    def __str__(self) -> str:
        width = f" ± {self.half_width:.4f}" if self.half_width is not None else ""
        return f"{self.entrant.name} {self.mean:.4f}{width}"


@dataclass(frozen=True)
class Confirmed:
    """The entrants' scores, the winner first, and its run of the median seed, which is the one to keep."""

    metric: str
    scores: list[Scores]
    median: Trial
    sentences: list[str]

    @property
    def others(self) -> list[Trial]:
        """All trials of the confirmation but the one to keep."""
        return [trial for scores in self.scores for trial in scores.trials if trial is not self.median]

    def as_json(self) -> dict[str, Any]:
        entrants = [each.as_json(self.metric) for each in self.scores]
        winner = self.scores[0].entrant.name
        return {"entrants": entrants, "winner": winner, "median_run_id": self.median.run_id, "verdict": self.sentences}


def entrants(study: Study, searched: Sequence[Trial]) -> tuple[list[Entrant], list[int]]:
    """The best trials of the search and the recipe's own settings; seeds that no trial of the search has used."""
    best, seeds = (int(number) for number in (study.run.sweep.confirm or "1x1").split("x"))
    finished = [trial for trial in study.ranked(searched) if trial.status == "finished"]
    chosen = [Entrant(f"trial {trial.number}", trial.params) for trial in finished[:best]]
    own = {key: study.base[key] for key in study.space}
    if key_of(own) not in {key_of(entrant.params) for entrant in chosen}:
        chosen.append(Entrant("the recipe's settings", {}))
    first = study.run.train.seed + 1
    return chosen, list(range(first, first + seeds))


def confirmed(study: Study, ledger: Ledger, entered: Sequence[Entrant], seeds: Sequence[int]) -> Confirmed | None:
    """The result of the entrants' trainings; None where none was trained to its end."""
    headline = study.run.model.headline
    finished = {key_of(trial.params): trial for trial in ledger.trials.values() if trial.role == "confirm" and trial.status == "finished"}
    scores = []
    for entrant in entered:
        trials = [trial for seed in seeds if (trial := finished.get(key_of(entrant.with_seed(seed))))]
        validation = [trial.value(study.metric) or 0.0 for trial in trials]
        if trials:
            scores.append(Scores(entrant, trials, validation, [trial.metrics[f"test/{headline.metric}"] for trial in trials]))
    if not scores:
        return None
    scores.sort(key=lambda each: statistics.fmean(each.validation), reverse=study.mode == "max")
    winner = scores[0]
    median = sorted(range(len(winner.trials)), key=lambda place: winner.validation[place])[(len(winner.trials) - 1) // 2]
    return Confirmed(f"test/{headline.metric}", scores, winner.trials[median], _sentences(f"test {headline.metric}", scores, len(seeds)))


def _sentences(metric: str, scores: Sequence[Scores], seeds: int) -> list[str]:
    """The means, and the winner's difference from the second and from the recipe's settings."""
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    winner = scores[0]
    others = [*scores[1:2], *(each for each in scores[2:] if not each.entrant.params)]
    means = f"{metric} over {over}, mean ± half of its 95 % interval: " + "; ".join(map(str, scores))
    return [means, *(f"{winner.entrant.name} {_difference(winner.test, other.test)} {other.entrant.name}" for other in others)]


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """The difference of two means and its significance, by Welch's t-test."""
    if min(len(one), len(other)) < 2:
        return "was trained with too few seeds for a comparison with"
    if statistics.pstdev(one) == statistics.pstdev(other) == 0:
        return "is equal, with every seed, to" if one[0] == other[0] else f"differs by {one[0] - other[0]:+.4f}, with every seed, from"
    from scipy.stats import ttest_ind

    test = ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(_LEVEL)
    verdict = "differs from" if test.pvalue < 1 - _LEVEL else "is not significantly different from"
    return f"(by {low:+.4f} to {high:+.4f}, p = {test.pvalue:.2g}) {verdict}"
