"""Slices: a column of the source read again for just the rows that were judged, and the groups that its values make."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.data.encode import Piece, Selection
from pipelines.data.splits import SPLITS
from pipelines.errors import RecipeError
from workloads.base import DataError, Encoding

MISSING, OTHERS = "(missing)", "(others)"
_MOST_GROUPS = 20
_PARTS = 4


def check(columns: Sequence[str], selection: Selection, told_by: int | None) -> None:
    """Raises RecipeError for a column that the source has not, or a task whose examples no row of the source stands for."""
    there = selection.source.columns()
    for name in columns:
        if name not in there:
            raise RecipeError(f"--slice {name}: {selection.source.label} has no such column; columns: {', '.join(there)}")
    if columns and told_by is None:
        raise RecipeError(f"--slice: {selection.workload.task} stores tokens, which are no rows of the source: no column can slice it")


def read(
    columns: Sequence[str], selection: Selection, pieces: Sequence[Piece], split: str, encoding: Encoding, *, examples: int, told_by: int
) -> dict[str, np.ndarray]:
    """Each column's value of each example, objects (N,). Raises DataError if there are not as many rows as were judged."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    number = SPLITS.index(split)
    for piece in pieces:
        for batch in selection.batches(piece, also=columns):
            rows = batch.numbers(number, encoding)
            for name in columns:
                found[name].append(np.asarray(batch.also[name], dtype=object)[rows])
    values = {name: np.concatenate(parts)[told_by : told_by + examples] for name, parts in found.items()}
    if any(len(column) != examples for column in values.values()):
        there = min(len(column) for column in values.values())
        raise DataError(f"{selection.source.label}: {examples:,} examples were judged, but {there:,} rows are there now; did it change?")
    return values


def groups(values: np.ndarray) -> dict[str, np.ndarray]:
    """Which examples (bool (N,)) have which value; many different numbers in quarters, of many other values the commonest and the rest."""
    missing = np.array([value is None or value != value for value in values], bool)
    if _are_many_numbers(values[~missing]):
        return dict(_quarters(values, missing))
    spelt = np.array([MISSING if gone else _spelt(value) for value, gone in zip(values, missing, strict=True)], dtype=str)
    names, counts = np.unique(spelt, return_counts=True)
    kept = set(names[np.argsort(-counts, kind="stable")][:_MOST_GROUPS].tolist())
    found = {name: spelt == name for name in names.tolist() if name in kept}
    rest = ~np.isin(spelt, list(kept))
    return found | ({OTHERS: rest} if rest.any() else {})


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
