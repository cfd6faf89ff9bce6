"""Compare runs: settings that differ, scores with intervals, a test of the best against the others, cost, and MLflow's page of them.

Nothing is trained, loaded or read again: a run keeps the scores of each of its test rows, and that is enough for a test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import RecipeError
from pipelines.evaluation import reports, statistics
from pipelines.evaluation.reports import RowScores
from pipelines.evaluation.statistics import Interval
from pipelines.screen import Screen
from pipelines.tracking import client as mlflow_client
from pipelines.tracking import facts, lookup
from pipelines.tracking.facts import Difference, Facts
from pipelines.tracking.lookup import TrackedRun
from pipelines.tracking.pages import number

if TYPE_CHECKING:
    from pipelines.tracking.lookup import MlflowClient

MOST = 10
"""Runs of an experiment or a sweep that are compared: the best ones."""
_AS_COLUMNS = 5
_LEVEL = 0.05
"""A difference is called real where one as large would come by chance less often than this."""
_IGNORED = ("storage", "name", "track.", "sweep.", "train.log_every", "train.checkpoint_every", "train.keep")
_LABELS = {"cpu_hours": "CPU-hours", "gpu_hours": "GPU-hours"}


@dataclass(frozen=True)
class Side:
    """One of the runs that are compared."""

    run: TrackedRun
    facts: Facts
    scores: RowScores | None
    """None where the run keeps no scores by row: it did not finish, or is a trial that never saw a test row."""
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """The best run against another one, by its headline metric on the test rows."""

    best: str
    other: str
    metric: str
    difference: statistics.Difference
    p: float
    """Corrected for as many comparisons as there are (Holm, 1979)."""
    same_rows: bool

    @property
    def real(self) -> bool:
        return self.p < _LEVEL

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
        difference, interval = self.difference.value, self.difference.interval
        if not difference:
            return f"{self.best} and {self.other} are equal in {self.metric}"
        by = f"{self.metric} {difference:+.4f}" + (f" [{interval.low:+.4f}, {interval.high:+.4f}]" if interval else "")
        on = "the same test rows" if self.same_rows else "other test rows, a weaker test"
        verdict = "the difference is real" if self.real else "it may be chance"
        return f"{self.best} against {self.other}: {by}; {verdict} (p = {self.p:.2g}, {self.difference.test}, {on})"


def compare(
    called: Sequence[str], overrides: Sequence[str], *, experiment: str | None, sweep: str | None, screen: Screen
) -> dict[str, Any]:
    """Compare runs: those that are `called`, or the best of an experiment or of a sweep. The result is JSON.

    Raises RecipeError for an unknown run, with the known ones, and StorageError where MLflow cannot be reached.
    """
    uri, root, others, _ = lookup.place(overrides)
    if others:
        raise RecipeError(*(f"{other}: compare changes no settings of a run; give storage and track.uri only" for other in others))
    with lookup.opened(uri) as client:
        chosen, of = _chosen(client, called, experiment, sweep)
        sides = [_side(client, run) for run in chosen]
        names = lookup.experiments(client)
    apart = facts.differences([side.facts for side in sides], _IGNORED)
    headline, compared = comparisons([(side.run, side.scores) for side in sides])
    result = {
        "runs": [_as_json(side, names, uri) for side in sides],
        "of": of,
        "headline": headline,
        "differences": [asdict(one) for one in apart],
        "comparisons": [comparison.as_json() for comparison in compared],
        "compare_url": mlflow_client.compare_page(uri, [run.run_id for run in chosen], [run.experiment_id for run in chosen]),
    }
    _show(sides, apart, compared, result, screen)
    if uri.startswith("sqlite"):
        screen.say(f"         after: raylway ui --storage {root}")
    return result


def _chosen(client: MlflowClient, called: Sequence[str], experiment: str | None, sweep: str | None) -> tuple[list[TrackedRun], int]:
    """The runs to compare, and the number of those that they are the best of."""
    if called:
        if sweep:
            raise RecipeError("--sweep compares the trials of a sweep; name runs, or give --sweep, not both")
        found = [lookup.named(client, each, experiment=experiment) for each in called]
        several = list({run.run_id: run for run in found}.values())
        if len(several) < 2:
            same = f"{' and '.join(called)} are the same run, {several[0].name}" if len(called) > 1 else f"{called[0]} is one run"
            raise RecipeError(f"{same}; name two different ones, or give --experiment or --sweep")
        return several, len(several)
    if bool(experiment) == bool(sweep):
        raise RecipeError("name two runs or more (an id, a name, latest, best), or give --experiment or --sweep")
    if sweep:
        trials = lookup.of_sweep(client, sweep)
        order, what = lookup.ranked(trials, "best/val") or trials, f"sweep {sweep}"
    else:
        finished = lookup.of_experiment(client, str(experiment))
        order, what = lookup.ranked(finished) or finished, f"experiment {experiment}"
    if len(order) < 2:
        raise RecipeError(f"{what} has one run, {order[0].name}; there is nothing to compare it with")
    return order[:MOST], len(order)


def _side(client: MlflowClient, run: TrackedRun) -> Side:
    with tempfile.TemporaryDirectory(prefix="raylway-") as scratch:
        file = facts.artifact(client, run.run_id, reports.ARTIFACT, Path(scratch))
        scores = reports.read_row_scores(file) if file else None
    block = statistics.block_of(len(scores), scores.span) if scores else 1
    drawn = {name: statistics.interval(score, block=block) for name, score in scores.scores.items()} if scores else {}
    return Side(run, facts.facts(client, run), scores, {name: interval for name, interval in drawn.items() if interval})


def comparisons(sides: Sequence[tuple[TrackedRun, RowScores | None]]) -> tuple[str | None, list[Comparison]]:
    """The metric (test/accuracy) by which runs are compared, and the best run against each other one that has scores by row.

    (None, []) where the runs have different headline metrics.
    """
    scored = [(run, kept) for run, kept in sides if kept is not None and lookup.score(run) is not None]
    headlines = {lookup.headline(run) for run, _ in sides}
    headline = next(iter(headlines)) if len(headlines) == 1 else None
    if headline is None:
        return None, []
    mode, metric = headline
    order = sorted(scored, key=lambda side: lookup.score(side[0]) or 0.0, reverse=mode == "max")
    compared = [_comparison(order[0], other, metric) for other in order[1:]]
    return f"test/{metric}", _corrected(compared)


def _comparison(best: tuple[TrackedRun, RowScores], other: tuple[TrackedRun, RowScores], metric: str) -> Comparison:
    (ahead, ours), (behind, theirs) = best, other
    metric = ours.derived.get(metric, metric)
    score, other_score = ours.scores[metric], theirs.scores[metric]
    same = bool(ahead.fingerprint) and ahead.fingerprint == behind.fingerprint and np.array_equal(score.count, other_score.count)
    blocks = statistics.block_of(len(ours), ours.span), statistics.block_of(len(theirs), theirs.span)
    if same:
        difference = statistics.difference(score, other_score, block=max(blocks))
    else:
        difference = statistics.unpaired(score, other_score, blocks=blocks)
    return Comparison(ahead.name, behind.name, metric, difference, difference.p, same)


def _corrected(compared: Sequence[Comparison]) -> list[Comparison]:
    """p-values corrected by Holm: the smallest times the number of comparisons, the next times one less, none below another."""
    corrected, highest = list(compared), 0.0
    for place, index in enumerate(sorted(range(len(compared)), key=lambda index: compared[index].p)):
        highest = max(highest, min(1.0, (len(compared) - place) * compared[index].p))
        corrected[index] = replace(compared[index], p=highest)
    return corrected


def _as_json(side: Side, experiments: dict[str, str], uri: str) -> dict[str, Any]:
    run = side.run
    return {
        "run_id": run.run_id,
        "run_name": run.name,
        "experiment": experiments.get(run.experiment_id, run.experiment_id),
        "status": run.status,
        "metrics": {name: value for name, value in run.metrics.items() if name.startswith(("test/", "val/", "best/", "baseline/"))},
        "intervals": {f"test/{name}": list(interval) for name, interval in side.intervals.items()},
        "cost": _cost(run),
        "url": mlflow_client.run_page(uri, run.experiment_id, run.run_id),
    }


def _cost(run: TrackedRun) -> dict[str, float | None]:
    """The cost of a run; of a trial, which keeps none, from its times and its threads."""
    seconds = run.metrics.get("cost/seconds", run.ended and run.ended - run.began)
    threads = float(run.tags.get("raylway.threads", 0)) * max(1, int(run.tags.get("raylway.workers", 1)))
    hours = run.metrics.get("cost/cpu_hours", seconds * threads / 3600 if seconds and threads else None)
    stages = {name.replace("/", " of "): value for name, value in run.metrics.items() if name.startswith("seconds/")}
    stages.pop("seconds of total", None)
    return {"seconds": seconds, **stages, "cpu_hours": hours, "gpu_hours": run.metrics.get("cost/gpu_hours")}


def _show(
    sides: Sequence[Side], apart: Sequence[Difference], compared: Sequence[Comparison], result: dict[str, Any], screen: Screen
) -> None:
    if result["of"] > len(sides):
        screen.say(f"the {len(sides)} best of {result['of']:,}")
    if not apart:
        screen.say("no recorded difference: settings, code, data, packages and environment are the same")
    _table("what differs", [[f"{one.group} {one.name}", *map(_short, one.values)] for one in apart], sides, screen)
    _table("how good", _scores(sides), sides, screen)
    for comparison in compared:
        screen.say(str(comparison))
    if not compared and any(lookup.PARENT in side.run.tags for side in sides):
        screen.say(
            "trials were chosen by these validation rows, so a test on them would be biased; sweep.confirm=3x5 tests them on the test rows"
        )
    _table("what it cost", _costs(sides), sides, screen)
    screen.say(f"look     {result['compare_url']}")


def _scores(sides: Sequence[Side]) -> list[list[str]]:
    """Rows of every metric of the test rows with its interval, the naive baseline, and the best of the validation rows."""
    every = sorted({name for side in sides for name in side.run.metrics})
    rows = [["status", *(side.run.status.lower() for side in sides)]] if any(side.run.status != "FINISHED" for side in sides) else []
    for prefix in ("test/", "baseline/", "best/val/", "val/"):
        for name in (name for name in every if name.startswith(prefix)):
            if prefix == "test/":
                key = name.removeprefix(prefix)
                rows.append([name, *(reports.cell(side.run.metrics.get(name), side.intervals.get(key)) for side in sides)])
            elif name.count("/") == prefix.count("/"):  # not of each class, or of each baseline
                rows.append([name, *(number(side.run.metrics.get(name)) for side in sides)])
    return rows


def _costs(sides: Sequence[Side]) -> list[list[str]]:
    costs = [_cost(side.run) | {"samples/s": side.run.metrics.get("perf/samples_per_second")} for side in sides]
    names = dict.fromkeys(name for cost in costs for name in cost)
    rows = [[_LABELS.get(name, name), *(_amount(cost.get(name)) for cost in costs)] for name in names]
    return [row for row in rows if any(row[1:])]


def _amount(value: float | None) -> str:
    return "" if not value else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _table(title: str, rows: Sequence[list[str]], sides: Sequence[Side], screen: Screen) -> None:
    """Show rows of a label and a cell for each run: a column for each run, or a row for each where there are many."""
    head = ["", *(side.run.name for side in sides)]
    if rows and len(sides) > _AS_COLUMNS:
        head, *rows = map(list, zip(head, *rows, strict=True))
    if rows:
        screen.table(title, head, rows)


def _short(value: str | None) -> str:
    if value is None:
        return "—"
    return value if len(value) <= 40 else f"{value[:37]}…"
