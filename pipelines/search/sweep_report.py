"""What a sweep found: as JSON, on the screen, while it goes on, and as the description of its run in MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from cluster.capacity import TrialSlots
from pipelines.screen import Screen, table
from pipelines.search import ranking
from pipelines.search.confirm import Confirmed
from pipelines.search.ledger import Trial
from pipelines.search.study import Design
from pipelines.tracking.provenance import redact
from pipelines.tracking.shipper import Tracker

if TYPE_CHECKING:
    from pipelines.tracking.registry import Registered


@dataclass(frozen=True)
class Findings:
    """The trials of a sweep that lie in its space, and what was made of them."""

    design: Design
    trials: Sequence[Trial]
    importance: Mapping[str, float]
    confirmed: Confirmed | None
    tracker: Tracker

    @property
    def best(self) -> Trial | None:
        """The best of those that were trained to their end."""
        return ranking.best(self.trials, self.design.metric, self.design.mode)

    @cached_property
    def comparison(self) -> str:
        """The page of all trials, the best first."""
        metric = f"metrics.`{self.design.metric}`"
        columns = [metric, *(f"params.`{key}`" for key in self.design.space)]
        return self.tracker.comparison(metric, ascending=self.design.mode == "min", columns=columns)

    def as_json(self, model: Registered | None) -> dict[str, Any]:
        """The JSON of `raylway sweep`, but for the seconds."""
        return {
            "sweep_id": self.tracker.folder.path.name,
            "run_id": self.tracker.run_id,
            "status": "finished",
            "metric": self.design.metric,
            "mode": self.design.mode,
            "trials": [_row(trial) for trial in self.trials],
            "best": _row(self.best) if self.best else None,
            "importance": dict(self.importance),
            "confirmed": self.confirmed.as_json() if self.confirmed else None,
            "model": vars(model) if model else None,
            "tracking_uri": redact(self.tracker.uri),
            "run_url": self.tracker.run_url,
            "compare_url": self.comparison,
        }

    def markdown(self, run_ids: Mapping[int, str], *, linked: bool = True) -> str:
        """The description of the sweep's run: the leaderboard, with links to the trials' pages, and at the end to all of them."""
        links = {number: self.tracker.url_of(run_id) for number, run_id in run_ids.items() if run_id}
        notes = [ranking.importances(self.importance), *(self.confirmed.sentences if self.confirmed else ())]
        notes += [f"[compare the trials]({self.comparison})"] if linked else []
        title = f"sweep of {self.design.recipe} on {self.design.run.data.name}"
        return ranking.markdown(title, self.trials, self.design.metric, self.design.mode, links=links, notes=notes)

    def show(self, screen: Screen, root: Path, model: Registered | None) -> None:
        """The leaderboard, what it means, and what to type next."""
        design = self.design
        screen.table("", ranking.columns(self.trials, design.metric), ranking.rows(self.trials, design.metric, design.mode))
        for told in (ranking.importances(self.importance), *(self.confirmed.sentences if self.confirmed else ())):
            if told:
                screen.say(told)
        winner = self.confirmed.scores[0].entrant.params if self.confirmed else self.best.params if self.best else None
        if winner is not None:
            screen.say(f"best     {shlex.join(design.train_command(winner))}")
        if not self.confirmed:
            screen.say(
                "confirm  the same command with sweep.confirm=3x5 trains the best three with five seeds and judges them on the test rows"
            )
        if model:
            screen.say(f"model    {model.uri}, alias candidate")
        screen.say(f"compare  {self.comparison}")
        screen.say(f"look     raylway ui --storage {root}   then {self.tracker.run_url}")


def live(design: Design, trials: Sequence[Trial], room: TrialSlots, *, total: int, importance: Mapping[str, float]) -> RenderableType:
    """The best, the running and the ended trials, with the time that is left."""
    spent = [trial.seconds for trial in trials if trial.ended and trial.seconds]
    left = total - sum(trial.ended for trial in trials)
    eta = f"  ETA {left * sum(spent) / len(spent) / room.at_once:,.0f} s" if spent else ""
    counts = ", ".join(
        f"{sum(each.status == status for each in trials)} {status}" for status in ("running", "finished", "stopped", "failed")
    )
    drawn = table("", ranking.columns(trials, design.metric), ranking.rows(trials, design.metric, design.mode))
    return Group(f"{total} trials: {counts}{eta}", drawn, ranking.importances(importance))


def _row(trial: Trial) -> dict[str, Any]:
    row = {
        "trial": trial.number,
        "run_id": trial.run_id,
        "params": trial.params,
        "metrics": trial.metrics,
        "status": trial.status,
        "seconds": trial.seconds,
    }
    return row | ({"cause": trial.cause} if trial.cause else {})
