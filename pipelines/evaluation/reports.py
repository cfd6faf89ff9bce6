"""Reports: metrics with their intervals, of all examples and of each slice (a group of a column's values), for people and as JSON.

A run keeps each test row's part in each score (`RowScores`), so runs can be compared row by row without their networks or their data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation import statistics
from pipelines.evaluation.statistics import Interval
from pipelines.tracking.pages import number, table
from workloads.base import Arrays, Rows
from workloads.judging import Judged, Judging, Score, joined, metrics

MISSING, OTHERS = "(missing)", "(others)"
_MOST_GROUPS = 20
_PARTS = 4
ARTIFACT = "scores/test.npz"
"""Path of a run's row scores among its artifacts."""
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Group:
    """Metrics of all examples, or of a slice."""

    rows: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    """95 %, of those metrics that have one."""

    def as_json(self) -> dict[str, Any]:
        """Metrics without a value (NaN), such as the ROC curve of a single class, are null: JSON has no other word for it."""
        intervals = {name: [_finite(end) for end in interval] for name, interval in self.intervals.items()}
        return {"rows": self.rows, "metrics": {name: _finite(value) for name, value in self.metrics.items()}, "intervals": intervals}


@dataclass(frozen=True)
class Report:
    """All examples, and their slices: column -> value -> group."""

    whole: Group
    slices: dict[str, dict[str, Group]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    block: int = 1
    """The number of consecutive examples that were resampled together."""
    naive: dict[str, float] = field(default_factory=dict)
    """Metrics of the strongest naive baseline on the same examples, where there is one."""

    def as_json(self) -> dict[str, Any]:
        slices = {column: {value: group.as_json() for value, group in groups.items()} for column, groups in self.slices.items()}
        return self.whole.as_json() | {"naive": self.naive, "slices": slices, "drawn_together": self.block} | self.details


def report(judging: Judging, judged: Judged, columns: Mapping[str, np.ndarray] | None = None) -> Report:
    """The report of scored examples; `columns` are those to slice by, a value an example."""
    block = statistics.block_of(len(judged), judging.span)
    found = metrics(judging, judged)
    intervals = _intervals(judging, {**judged.scores, **judging.part_scores(judged)}, block)
    intervals |= statistics.intervals(lambda index: judging.joint_metrics(judged.take(index)), len(judged), block=block)
    slices = {
        name: {value: _slice(judging, judged, inside, block) for value, inside in groups(values).items()}
        for name, values in (columns or {}).items()
    }
    intervals = {name: intervals[name] for name in found if name in intervals}
    return Report(Group(len(judged), found, intervals), slices, judging.details(judged), block)


def plain(judging: Judging, judged: Judged, columns: Mapping[str, np.ndarray]) -> Report:
    """Every metric of all examples and of each slice, without intervals: what floors are held against."""

    def group(index: np.ndarray) -> Group:
        return Group(len(index), metrics(judging, judged.take(index)), {})

    slices = {name: {value: group(np.flatnonzero(inside)) for value, inside in groups(values).items()} for name, values in columns.items()}
    return Report(group(np.arange(len(judged))), slices)


def groups(values: np.ndarray) -> dict[str, np.ndarray]:
    """Value -> its examples, bool (N,); many different numbers in quarters, of many other values the commonest and the rest."""
    missing = np.array([value is None or value != value for value in values], bool)
    if _are_many_numbers(values[~missing]):
        return dict(_quarters(values, missing))
    spelt = np.array([MISSING if gone else _spelt(value) for value, gone in zip(values, missing, strict=True)], dtype=str)
    names, counts = np.unique(spelt, return_counts=True)
    kept = set(names[np.argsort(-counts, kind="stable")][:_MOST_GROUPS].tolist())
    found = {name: spelt == name for name in names.tolist() if name in kept}
    rest = ~np.isin(spelt, list(kept))
    return found | ({OTHERS: rest} if rest.any() else {})


def markdown(report: Report, *, of: str, on: str) -> str:
    """The report as a page."""
    drawn = "rows" if report.block == 1 else f"blocks of {report.block:,} consecutive examples"
    lines = [f"# {of} on {on}", "", f"{report.whole.rows:,} examples; 95 % bootstrap intervals over {drawn}"]
    for title, (head, *rows) in tables(report):
        lines += ["", *([f"## {title}", ""] if title else []), table(head, rows, pad="")]
    return "\n".join(lines) + "\n"


def tables(report: Report) -> list[tuple[str, list[list[str]]]]:
    """Tables for people, the first row of each being its head: all metrics, then classes, steps ahead and slices, where there are such."""
    whole, naive = report.whole, report.naive
    rows = [
        [name, number(value), within(whole.intervals.get(name)), *([number(naive.get(name))] if naive else [])]
        for name, value in whole.metrics.items()
        if "/" not in name
    ]
    found = [("", [["", "", "95 % interval", *(["naive baseline"] if naive else [])], *rows])]
    kinds: dict[str, dict[str, dict[str, str]]] = {}
    for name in whole.metrics:
        if "/" in name:
            kind, rest = name.split("/", 1)
            member, _, metric = rest.rpartition("/")
            kinds.setdefault(kind, {}).setdefault(member, {})[metric] = cell(whole.metrics[name], whole.intervals.get(name))
    slices = {
        column: {
            value: {"rows": f"{group.rows:,}"} | {name: cell(group.metrics[name], group.intervals.get(name)) for name in group.metrics}
            for value, group in values.items()
        }
        for column, values in report.slices.items()
    }
    for kind, members in (*kinds.items(), *slices.items()):
        columns = list(next(iter(members.values())))
        body = [[member, *(cells.get(name, "") for name in columns)] for member, cells in members.items()]
        found.append((f"by {kind}", [[kind, *columns], *body]))
    return found


def write_table(path: Path, columns: Mapping[str, Any], slices: Mapping[str, np.ndarray]) -> None:
    """The rows as Parquet, the columns that slice them behind."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    arrays = {name: _arrow(values) for name, values in columns.items()}
    for name, values in slices.items():
        arrays[f"slice {name}"] = pa.array([None if value is None or value != value else str(value) for value in values])
    parquet.write_table(pa.table(arrays), path)


@dataclass(frozen=True)
class RowScores:
    """Scores by name, with each test row's part in them; `span` rows in a row share data with one another (1: none do)."""

    scores: Mapping[str, Score]
    span: int
    derived: Mapping[str, str] = field(default_factory=dict)
    """Metrics that rise with a score, such as rmse with mse: runs are compared by that score."""

    def __len__(self) -> int:
        return len(next(iter(self.scores.values())).total)


def row_scores(judging: Judging, outputs: Arrays, examples: Rows) -> RowScores:
    """The scores of each of `examples`, in their order; `outputs` are the network's, of all of them."""
    parts = []
    for start in range(0, len(examples), _CHUNK_ROWS):
        taken = examples.take(np.arange(start, min(start + _CHUNK_ROWS, len(examples))))
        parts.append(judging.judge({name: column[start : start + _CHUNK_ROWS] for name, column in outputs.items()}, taken))
    return RowScores(joined(parts).scores, judging.span, {name: score for name, (score, _) in judging.derived.items()})


def write_row_scores(path: Path, rows: RowScores) -> None:
    """Keep row scores in a file of plain arrays."""
    arrays: dict[str, Any] = {"span": np.int64(rows.span)}
    for name, score in rows.scores.items():
        arrays |= {f"{name} total": score.total, f"{name} count": score.count}
    arrays |= {f"{name} derived": np.array(score) for name, score in rows.derived.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_row_scores(path: Path) -> RowScores:
    """Row scores as `write_row_scores` kept them. Nothing in the file can run."""
    with np.load(path, allow_pickle=False) as file:
        names = [name.removesuffix(" total") for name in file.files if name.endswith(" total")]
        derived = {name.removesuffix(" derived"): str(file[name]) for name in file.files if name.endswith(" derived")}
        return RowScores({name: Score(file[f"{name} total"], file[f"{name} count"]) for name in names}, int(file["span"]), derived)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _arrow(values: Any) -> Any:
    """A column: lists of fixed length for an array of several axes."""
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.ndim > 1:
        return pa.FixedSizeListArray.from_arrays(_arrow(values.reshape(-1, *values.shape[2:])), values.shape[1])
    return pa.array(values)


def cell(value: float | None, interval: Interval | None) -> str:
    """A metric with its interval."""
    return f"{number(value)} {within(interval)}".strip()


def within(interval: Interval | None) -> str:
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


def _quarters(values: np.ndarray, missing: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Four groups of about as many rows, by the quartiles."""
    numbers = np.array([np.nan if gone else float(value) for value, gone in zip(values, missing, strict=True)])
    edges = np.unique(np.quantile(numbers[~missing], np.linspace(0, 1, _PARTS + 1)))
    for low, high in itertools.pairwise(edges.tolist()):
        inside = (numbers >= low) & ((numbers <= high) if high == edges.max() else (numbers < high))
        yield f"{low:g} to {high:g}", inside
    if missing.any():
        yield MISSING, missing


def _are_many_numbers(values: np.ndarray) -> bool:
    numbers = all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)
    return numbers and len(set(values.tolist())) > _MOST_GROUPS


def _spelt(value: object) -> str:
    """As a person would write it, on one line, not too long."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())[:60] or "(empty)"
