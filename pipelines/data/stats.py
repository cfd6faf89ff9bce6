"""Counts of a prepared dataset, taken while it is made: rows by split and class, lengths, missing values, skipped rows, duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from workloads.base import Arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES, _SHOWN = 10, 5
Counts = dict[str, int]


class Summary(BaseModel):
    """Counts of rows; those of several pieces are added up. The sums close: read = used + skipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: int = 0
    """Rows of the source that belong to a split, and rows that could not be read."""
    used: int = 0
    skipped: int = 0
    examples: tuple[str, ...] = ()
    """The first ten skipped rows: file, row, problem."""
    splits: Counts = {}
    """Stored rows of each split: tokens of a text; of a series also the context before the split's own rows."""
    classes: dict[str, Counts] = {}
    """Rows of each class, by split."""
    lengths: dict[str, Counts] = {}
    """Rows of each length, by split, where lengths differ."""
    missing: Counts = {}
    """Missing values of each column."""
    leaked: int = 0
    """Test rows that duplicate the input of a training row."""

    def __add__(self, other: Summary) -> Summary:
        total = Summary(**{name: _added(own, getattr(other, name)) for name, own in self})
        return total.model_copy(update={"examples": total.examples[:_EXAMPLES]})

    @property
    def closes(self) -> bool:
        return self.read == self.used + self.skipped


def missing_in(raw: Arrays) -> Counts:
    """Missing values (None; NaN and NaT, which differ from themselves) of each column that has any."""
    found = {
        name: sum(value is None for value in column) if column.dtype == object else int((column != column).sum())
        for name, column in raw.items()
    }
    return {name: count for name, count in found.items() if count}


def counted(values: np.ndarray, names: tuple[str, ...] = ()) -> Counts:
    """Occurrences of each value; integers below len(names) under their names."""
    found, counts = np.unique(values, return_counts=True)
    return {names[value] if names else str(value): count for value, count in zip(found.tolist(), counts.tolist(), strict=True)}


def row_hashes(arrays: Arrays) -> np.ndarray:
    """A hash of each row, uint64 (N,): rows that differ in a column share one by chance, one pair in 10^19."""
    total = np.zeros(len(next(iter(arrays.values()))), np.uint64)
    for name in sorted(arrays):
        column = np.ascontiguousarray(arrays[name])
        content = column.view(np.uint8).reshape(len(column), -1)
        words = np.pad(content, ((0, 0), (0, -content.shape[1] % 8))).view(np.uint64)
        factors = np.random.default_rng([len(name), words.shape[1]]).integers(1, 1 << 63, words.shape[1], dtype=np.uint64)
        mixed = (words ^ (words >> np.uint64(29))) * (factors * np.uint64(2) + np.uint64(1))
        total = total * np.uint64(0x9E3779B97F4A7C15) + (mixed ^ (mixed >> np.uint64(32))).sum(axis=1, dtype=np.uint64)
    return total


def markdown(summary: Summary, *, source: Mapping[str, str], fingerprint: str, columns: Mapping[str, str], sample: Arrays) -> str:
    """The summary as a page in Markdown."""
    lines = [f"# Data `{fingerprint}`", ""]
    lines += [f"{summary.read:,} rows read = {summary.used:,} used + {summary.skipped:,} skipped", ""]
    lines += _table(["split", "rows"], [[split, f"{rows:,}"] for split, rows in summary.splits.items()])
    names = sorted({name for counts in summary.classes.values() for name in counts})
    if names:
        cells = [[name, *(f"{summary.classes.get(split, {}).get(name, 0):,}" for split in summary.splits)] for name in names[:100]]
        lines += _table(["class", *summary.splits], cells)
    if summary.leaked:
        lines += [f"**{summary.leaked:,} test rows have the same input as a training row.**", ""]
    if summary.examples:
        lines += ["Rows left out:", "", *(f"- {example}" for example in summary.examples), ""]
    lines += ["Missing values: " + (", ".join(f"{name} {count:,}" for name, count in summary.missing.items()) or "none"), ""]
    lines += _table(["stored column", "type"], [[name, kind] for name, kind in columns.items()])
    shown = [[name, *(_short(value) for value in column[:_SHOWN].tolist())] for name, column in sample.items()]
    lines += ["The first training rows:", ""]
    lines += _table(["column", *(f"row {row}" for row in range(1, len(shown[0])))], shown)
    return "\n".join([*lines, "Made from:", "", *(f"- {name}: `{content}`" for name, content in source.items()), ""])


def lengths_figure(summary: Summary) -> Figure:
    """Histogram of row lengths, by split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for split, counts in summary.lengths.items():
        lengths = {int(length): count for length, count in counts.items()}
        total = sum(lengths.values())
        axes.plot(sorted(lengths), [lengths[length] / total for length in sorted(lengths)], marker=".", label=f"{split}, {total:,} rows")
    axes.set(title="length of rows", xlabel="tokens", ylabel="share of the split's rows")
    axes.legend()
    return figure


def _added(first: Any, second: Any) -> Any:
    """The sum of two numbers, tuples, or dicts of these by key."""
    if not isinstance(first, dict):
        return first + second
    return {key: _added(first[key], second[key]) if key in first and key in second else (first | second)[key] for key in first | second}


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def _short(value: Any) -> str:
    if isinstance(value, (bytes, list)):
        return f"{type(value).__name__} of {len(value):,}"
    text = str(value).replace("\n", "⏎").replace("|", "\\|")
    return text if len(text) <= 60 else f"{text[:57]}…"
