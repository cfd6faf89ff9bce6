"""What is known of a model on some examples: metrics with their intervals, of all and of each slice, and as a page that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation import statistics
from pipelines.evaluation.slices import groups
from pipelines.evaluation.statistics import Interval
from workloads.judging import Judged, Judging, Score, metrics


@dataclass(frozen=True)
class Group:
    """Metrics of some examples."""

    rows: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    """95 %, of those metrics that have one."""

    def as_json(self) -> dict[str, Any]:
        """What no rows can tell (NaN), such as the ROC curve of a single class, as null: JSON has no other word for it."""
        told = {name: [_known(end) for end in interval] for name, interval in self.intervals.items()}
        return {"rows": self.rows, "metrics": {name: _known(value) for name, value in self.metrics.items()}, "intervals": told}


@dataclass(frozen=True)
class Report:
    """All examples, and their slices: column -> value -> group."""

    whole: Group
    slices: dict[str, dict[str, Group]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    block: int = 1
    """How many consecutive examples were drawn together."""
    naive: dict[str, float] = field(default_factory=dict)
    """The metrics of the strongest naive answer to the same examples, where there is one to be had."""


def report(judging: Judging, judged: Judged, columns: Mapping[str, np.ndarray] | None = None) -> Report:
    """Everything there is to say of judged examples; `columns` are those to slice by, a value an example."""
    block = statistics.block_of(len(judged), judging.span)
    found = metrics(judging, judged)
    intervals = _intervals(judging, {**judged.scores, **judging.parts(judged)}, block)
    intervals |= statistics.intervals(lambda index: judging.others(judged.take(index)), len(judged), block=block)
    slices = {
        name: {value: _slice(judging, judged, inside, block) for value, inside in groups(values).items()}
        for name, values in (columns or {}).items()
    }
    told = {name: intervals[name] for name in found if name in intervals}
    return Report(Group(len(judged), found, told), slices, judging.details(judged), block)


def plain(judging: Judging, judged: Judged, columns: Mapping[str, np.ndarray]) -> Report:
    """Every metric of all examples and of each slice, without intervals: what floors are held against."""

    def group(index: np.ndarray) -> Group:
        return Group(len(index), metrics(judging, judged.take(index)), {})

    slices = {name: {value: group(np.flatnonzero(inside)) for value, inside in groups(values).items()} for name, values in columns.items()}
    return Report(group(np.arange(len(judged))), slices)


def markdown(report: Report, *, of: str, on: str) -> str:
    """The report as a page."""
    drawn = "rows" if report.block == 1 else f"blocks of {report.block:,} consecutive examples"
    lines = [f"# {of} on {on}", "", f"{report.whole.rows:,} examples; 95 % bootstrap intervals over {drawn}"]
    for title, rows in tables(report):
        lines += ["", *([f"## {title}", ""] if title else []), *page(rows)]
    return "\n".join(lines) + "\n"


def tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    """Tables for people, the first row of each being its head: all metrics, then classes, steps ahead and slices, where there are such."""
    whole = report.whole
    plain = [name for name in whole.metrics if "/" not in name]
    naive = {name: number(value) for name, value in report.naive.items()}
    head = ["", "", "95 % interval", *(["naive baseline"] if naive else [])]
    rows = [[name, number(whole.metrics[name]), told(whole.intervals.get(name))] for name in plain]
    if naive:
        rows = [[*row, naive.get(row[0], "")] for row in rows]
    found = [("", [head, *rows])]
    grouped: dict[str, dict[str, dict[str, str]]] = {}
    for name, value in whole.metrics.items():
        if "/" in name:
            kind, rest = name.split("/", 1)
            member, _, metric = rest.rpartition("/")
            grouped.setdefault(kind, {}).setdefault(member, {})[metric] = f"{number(value)} {told(whole.intervals.get(name))}".strip()
    for kind, members in grouped.items():
        columns = list(next(iter(members.values())))
        body = [[member, *(cells.get(name, "") for name in columns)] for member, cells in members.items()]
        found.append((f"by {kind}", [[kind, *columns], *body]))
    for column, values in report.slices.items():
        names = list(next(iter(values.values())).metrics)
        rows = [
            [value, f"{group.rows:,}", *(f"{number(group.metrics[name])} {told(group.intervals.get(name))}".strip() for name in names)]
            for value, group in values.items()
        ]
        found.append((f"by {column}", [[column, "rows", *names], *rows]))
    return found


def write_table(path: Path, table: Mapping[str, Any], slices: Mapping[str, np.ndarray]) -> None:
    """The rows as Parquet, the columns that slice them behind."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {name: _arrow(values) for name, values in table.items()}
    for name, values in slices.items():
        columns[f"slice {name}"] = pa.array([None if value is None or value != value else str(value) for value in values])
    parquet.write_table(pa.table(columns), path)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _arrow(values: Any) -> Any:
    """A column: lists of fixed length for an array of several axes."""
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.ndim > 1:
        return pa.FixedSizeListArray.from_arrays(_arrow(values.reshape(-1, *values.shape[2:])), values.shape[1])
    return pa.array(values)


def number(value: float) -> str:
    return f"{value:.4f}"


def told(interval: Interval | None) -> str:
    return f"[{interval.low:.4f}, {interval.high:.4f}]" if interval else ""


def _slice(judging: Judging, judged: Judged, inside: np.ndarray, block: int) -> Group:
    """Scores alone: what no sum over examples gives says little of few rows. Blocks are those of all examples, less what is outside."""
    scores = {name: Score(score.total * inside, score.count * inside) for name, score in judged.scores.items()}
    means = {name: score.value for name, score in scores.items()}
    derived = {name: function(means[of]) for name, (of, function) in judging.derived.items()}
    return Group(int(inside.sum()), means | derived, _intervals(judging, scores, block))


def _intervals(judging: Judging, scores: Mapping[str, Score], block: int) -> dict[str, Interval]:
    found = {name: statistics.interval(score, block=block) for name, score in scores.items()}
    found |= {name: statistics.derived(found[of], function) for name, (of, function) in judging.derived.items()}
    return {name: interval for name, interval in found.items() if interval}


def page(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
