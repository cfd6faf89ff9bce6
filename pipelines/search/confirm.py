"""Confirm a sweep: train the best settings anew with other seeds, and say whether the winner can be told from the others.

The best of many trials is lucky as well as good, so its own score says too much. Seeds that the search never used give an honest one.
Who wins is decided by the validation rows; the test rows, looked at here for the first time, only say what that is worth.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data import dataset as prepared
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.data.preparation import Plan
from pipelines.run_record import RunFolder
from pipelines.search import ranking
from pipelines.search.controller import folder_of
from pipelines.search.ledger import Ledger, Trial
from pipelines.search.space import Params, key_of
from pipelines.search.study import Design

if TYPE_CHECKING:
    from pipelines.tracking.registry import Registered

_SEED = "train.seed"
_LEVEL = 0.95


@dataclass(frozen=True)
class Entrant:
    """Settings that are confirmed: those of a trial, or the recipe's own."""

    name: str
    params: Params


@dataclass(frozen=True)
class Scores:
    """What an entrant reached with each seed: on the validation rows, by which it is ranked, and on the test rows."""

    entrant: Entrant
    trials: list[Trial]
    validation: list[float]
    test: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.test)

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean (Student's t); none of a single seed."""
        if len(self.test) < 2:
            return None
        from scipy.stats import t

        return float(t.ppf((1 + _LEVEL) / 2, len(self.test) - 1)) * statistics.stdev(self.test) / len(self.test) ** 0.5

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

    def as_json(self) -> dict[str, Any]:
        rows = [
            {
                "entrant": each.entrant.name,
                "params": each.entrant.params,
                "metric": self.metric,
                "mean": each.mean,
                "half_width": each.half_width,
                "values": each.test,
            }
            for each in self.scores
        ]
        return {"entrants": rows, "winner": self.scores[0].entrant.name, "median_run_id": self.median.run_id, "verdict": self.sentences}


class Listed:
    """The trials of a confirmation, as a source for the conductor: every entrant with every seed."""

    def __init__(self, entrants: Sequence[Entrant], seeds: Sequence[int], there: Sequence[Trial]) -> None:
        wanted = [{**entrant.params, _SEED: seed} for seed in seeds for entrant in entrants]
        found = {key_of(trial.params): trial for trial in there}
        self.known = [found[key_of(params)] for params in wanted if key_of(params) in found]
        self._missing = [params for params in wanted if key_of(params) not in found]
        self.total = len(wanted)

    @property
    def waiting(self) -> list[Trial]:
        return [trial for trial in self.known if not trial.ended]

    def suggest(self, number: int) -> Params | None:
        return self._missing.pop(0) if self._missing else None

    def report(self, number: int, look: int, value: float) -> bool:
        return False

    def end(self, number: int, value: float | None, *, stopped: bool) -> None:
        pass

    def preload(self) -> None:
        pass


def entrants(design: Design, searched: Sequence[Trial]) -> tuple[list[Entrant], list[int]]:
    """The best trials of the search and the recipe's own settings; seeds that no trial of the search has used."""
    best, seeds = (int(number) for number in (design.run.sweep.confirm or "1x1").split("x"))
    order = [trial for trial in ranking.ranked(searched, design.metric, design.mode) if trial.status == "finished"][:best]
    found = [Entrant(f"trial {trial.number}", trial.params) for trial in order]
    own = {key: design.base[key] for key in design.space}
    if key_of(own) not in {key_of(entrant.params) for entrant in found}:
        found.append(Entrant("the recipe's settings", {}))
    first = design.run.train.seed + 1
    return found, list(range(first, first + seeds))


def confirmed(design: Design, ledger: Ledger, found: Sequence[Entrant], seeds: Sequence[int]) -> Confirmed | None:
    """What the trainings of the entrants say; None where none was trained to its end."""
    headline = design.run.model.headline
    trials = {key_of(trial.params): trial for trial in ledger.trials.values() if trial.role == "confirm" and trial.status == "finished"}
    scores = []
    for entrant in found:
        mine = [trial for seed in seeds if (trial := trials.get(key_of({**entrant.params, _SEED: seed})))]
        values = [trial.value(design.metric) or 0.0 for trial in mine]
        if mine:
            scores.append(Scores(entrant, mine, values, [trial.metrics[f"test/{headline.metric}"] for trial in mine]))
    if not scores:
        return None
    scores.sort(key=lambda each: statistics.fmean(each.validation), reverse=design.mode == "max")
    winner = scores[0]
    middle = sorted(range(len(winner.trials)), key=lambda place: winner.validation[place])[(len(winner.trials) - 1) // 2]
    return Confirmed(f"test/{headline.metric}", scores, winner.trials[middle], _sentences(f"test {headline.metric}", scores, len(seeds)))


def register(design: Design, plan: Plan, sweep: RunFolder, uri: str, dataset: Dataset, result: Confirmed) -> Registered | None:
    """Register the winner's run of the median seed, and free what the others kept."""
    trial = result.median
    folder = folder_of(sweep, trial.number)
    for each in (each for scores in result.scores for each in scores.trials if each is not trial):
        shutil.rmtree(folder_of(sweep, each.number).checkpoints, ignore_errors=True)
    run = design.trial(trial.params).run
    if not run.model_name:
        return None
    from pipelines.tracking import registry
    from pipelines.training import checkpoint

    if run.model.task_settings() != design.run.model.task_settings():
        plan = preparing.plan(run)
        dataset = prepared.proven(plan.store, plan.fingerprint)
    path, _ = checkpoint.newest(folder.checkpoints, folder.identity.read_text())
    assert path, folder
    return registry.register(
        uri,
        run_id=trial.run_id,
        name=run.model_name,
        workload=run.model,
        encoding=run.model.encoding_type.model_validate(dataset.manifest.encoding),
        weights=checkpoint.weights_file(Path(path)),
        sample=dataset.sample,
        tags={
            "weights_sha256": trial.told["weights_sha256"],
            "data.fingerprint": plan.fingerprint,
            "raylway.sweep": sweep.path.name,
        },
    )


def _sentences(metric: str, scores: Sequence[Scores], seeds: int) -> list[str]:
    """The means, and whether the winner can be told from the second and from the recipe's settings."""
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    winner = scores[0]
    others = [*scores[1:2], *(each for each in scores[2:] if not each.entrant.params)]
    told = [f"{metric} over {over}, mean ± half of its 95 % interval: " + "; ".join(map(str, scores))]
    return told + [f"{winner.entrant.name} {_difference(winner.test, other.test)} {other.entrant.name}" for other in others]


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """Whether two means differ beyond chance, by Welch's t-test."""
    if min(len(one), len(other)) < 2:
        return "was trained with too few seeds to be told from"
    if statistics.pstdev(one) == statistics.pstdev(other) == 0:
        return "cannot be told from" if one[0] == other[0] else f"differs by {one[0] - other[0]:+.4f}, with every seed, from"
    from scipy.stats import ttest_ind

    test = ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(_LEVEL)
    real = "differs from" if test.pvalue < 1 - _LEVEL else "cannot be told from"
    return f"(by {low:+.4f} to {high:+.4f}, p = {test.pvalue:.2g}) {real}"
