"""The results of a sweep: the leaderboard on the screen and in MLflow, a line for each trial that ends, the confirmation, the JSON."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from cluster.capacity import TrialSlots
from pipelines.screen import Screen, table
from pipelines.search.ledger import Ledger, Trial
from pipelines.search.space import key_of, name_of
from pipelines.search.study import Entrant, Study
from pipelines.tracking import pages
from pipelines.tracking.client import run_page
from pipelines.tracking.provenance import redact
from pipelines.tracking.sweep_tracker import SweepTracker

if TYPE_CHECKING:
    from pipelines.tracking.registry import Registered

_SHOWN, _DESCRIBED = 10, 25
_LEVEL = 0.95


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
    """A confirmation: the entrants' scores, the winner first, and its run of the median seed, which is the one to keep.

    The winner is chosen by the validation rows; the test rows, scored here for the first time, only measure it.
    """

    metric: str
    scores: list[Scores]
    median: Trial
    sentences: list[str]

    def as_json(self) -> dict[str, Any]:
        entrants = [each.as_json(self.metric) for each in self.scores]
        winner = self.scores[0].entrant.name
        return {"entrants": entrants, "winner": winner, "median_run_id": self.median.run_id, "verdict": self.sentences}


@dataclass(frozen=True)
class Report:
    """The trials of a sweep that lie in its space, the importance of its settings, and its confirmation."""

    study: Study
    trials: Sequence[Trial]
    tracker: SweepTracker
    importance: Mapping[str, float]
    confirmed: Confirmed | None = None

    @property
    def notes(self) -> list[str]:
        return [*importances(self.importance), *(self.confirmed.sentences if self.confirmed else ())]

    @cached_property
    def comparison(self) -> str:
        """The URL of MLflow's page of all trials, the best first."""
        metric = f"metrics.`{self.study.metric}`"
        columns = [metric, *(f"params.`{key}`" for key in self.study.space)]
        return self.tracker.comparison(metric, ascending=self.study.mode == "min", columns=columns)

    def as_json(self, model: Registered | None) -> dict[str, Any]:
        """The JSON of `raylway sweep`, but for the seconds."""
        best = self.study.best(self.trials)
        return {
            "sweep_id": self.tracker.folder.path.name,
            "run_id": self.tracker.run_id,
            "status": "finished",
            "metric": self.study.metric,
            "mode": self.study.mode,
            "trials": [_as_json(trial) for trial in self.trials],
            "best": _as_json(best) if best else None,
            "importance": dict(self.importance),
            "confirmed": self.confirmed.as_json() if self.confirmed else None,
            "model": vars(model) if model else None,
            "tracking_uri": redact(self.tracker.uri),
            "run_url": self.tracker.run_url,
            "compare_url": self.comparison,
        }

    def markdown(self, run_ids: Mapping[int, str], *, linked: bool = True) -> str:
        """The description of the sweep's run: the leaderboard, with links to the trials' pages, and at the end to all of them."""
        columns, rows = _board(self.study, self.trials, most=_DESCRIBED)
        for row in rows:
            if run_id := run_ids.get(int(row[0])):
                row[0] = f"[{row[0]}]({run_page(self.tracker.uri, self.tracker.experiment_id, run_id)})"
        title = f"**sweep of {self.study.recipe} on {self.study.run.data.name}**"
        link = [f"[compare the trials]({self.comparison})"] if linked else []
        return "\n\n".join([title, pages.table(["trial", *columns[1:]], rows, pad=""), *self.notes, *link])

    def show(self, screen: Screen, root: Path, model: Registered | None) -> None:
        """The leaderboard, its notes, and the commands to type next."""
        screen.table("", *_board(self.study, self.trials))
        for note in self.notes:
            screen.say(note)
        best = self.study.best(self.trials)
        winner = self.confirmed.scores[0].entrant.params if self.confirmed else best.params if best else None
        if winner is not None:
            screen.say(f"best     {shlex.join(self.study.train_command(winner))}")
        if not self.confirmed:
            screen.say(
                "confirm  sweep.confirm=3x5 added to the same command trains the best three with five seeds and scores their test rows"
            )
        if model:
            screen.say(f"model    {model.uri}, alias candidate")
        screen.say(f"compare  {self.comparison}")
        screen.say(f"look     raylway ui --storage {root}   then {self.tracker.run_url}")


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


def live(study: Study, trials: Sequence[Trial], slots: TrialSlots, *, total: int, importance: Mapping[str, float]) -> RenderableType:
    """The best, the running and the ended trials, with the time that is left."""
    spent = [trial.seconds for trial in trials if trial.ended and trial.seconds]
    left = total - sum(trial.ended for trial in trials)
    eta = f"  ETA {left * sum(spent) / len(spent) / slots.at_once:,.0f} s" if spent else ""
    statuses = ("running", "finished", "stopped", "failed")
    counts = ", ".join(f"{sum(each.status == status for each in trials)} {status}" for status in statuses)
    return Group(f"{total} trials: {counts}{eta}", table("", *_board(study, trials)), *importances(importance))


def ended(study: Study, trial: Trial, leader: Trial | None, *, count: int, total: int) -> str:
    """The line that reports the end of a trial, the `count`th of `total`."""
    value = trial.value(study.metric)
    score = f"  {study.metric} {value:.4f}" if value is not None else ""
    lead = f"  best {leader.value(study.metric):.4f} (trial {leader.number})" if leader else ""
    lead = "  the best so far" if leader is trial else lead
    cause = f": {trial.cause}" if trial.cause else ""
    return f"{count}/{total}  trial {trial.number} {trial.status}{cause}  {name_of(trial.params)}{score}  {trial.seconds:.1f} s{lead}"


def importances(shares: Mapping[str, float]) -> list[str]:
    """A line with the share of the differences that each setting explains; nothing while it is not known."""
    return ["importance so far: " + ", ".join(f"{key} {share:.0%}" for key, share in shares.items())] if shares else []


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


def _board(study: Study, trials: Sequence[Trial], *, most: int = _SHOWN) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the best trials, `most` of them, and of all that are running."""
    order, keys = study.ranked(trials), list(dict.fromkeys(key for trial in trials for key in trial.params))
    shown = order[:most] + [trial for trial in order[most:] if trial.status == "running"]
    rows = [
        [
            str(trial.number),
            *(_cell(trial.params.get(key)) for key in keys),
            _cell(trial.value(study.metric)),
            str(max(trial.validations, default=0)),
            f"{trial.seconds:.1f}" if trial.ended else "",
            trial.status if not trial.cause else f"{trial.status}: {trial.cause[:60]}",
        ]
        for trial in shown
    ]
    return ["", *keys, study.metric, "validations", "seconds", "status"], rows


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_json(trial: Trial) -> dict[str, Any]:
    names = ("run_id", "params", "metrics", "status", "seconds", *(["cause"] if trial.cause else []))
    return {"trial": trial.number} | {name: getattr(trial, name) for name in names}
