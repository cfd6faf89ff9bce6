"""Assign rows to splits by their numbers or by a column's values, so any process can do it for any range of rows.

Rows without an order are drawn: each block of 1,000 is permuted by its own seed and cut by the shares, so adding rows at the end moves no
earlier one, 10,000 rows at 0.8/0.1/0.1 give exactly 8,000/1,000/1,000, and no split can lack a part of an ordered file.
Rows with an order (a series, a text) are cut into consecutive parts, so nothing later is trained on than what is scored.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.source import Source, SplitSources
from pipelines.errors import RecipeError
from pipelines.settings import Data
from workloads.base import Arrays, DataError, Workload

SPLITS = ("train", "validation", "test")
RARE_ROWS = 50
"""A class of fewer rows is drawn by itself, unless `data.splits.stratify` says otherwise."""
_BLOCK = 1000
SPELLINGS = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2, "testing": 2}
Shares = tuple[float, ...]
"""Shares of the three splits; they sum to one."""


class Splitting(ABC):
    """Assigns rows to splits."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose values decide, beside row numbers."""
        return ()

    @abstractmethod
    def rows_of(self, split: int, start: int, stop: int, raw: Arrays) -> np.ndarray:
        """The rows of [start, stop), counted from `start`, that belong to `split`; `raw` are those rows. Raises DataError."""


@dataclass(frozen=True)
class Drawn(Splitting):
    """Splits of rows without an order, drawn by shares."""

    shares: Shares
    seed: int

    def rows_of(self, split: int, start: int, stop: int, raw: Arrays) -> np.ndarray:
        return np.flatnonzero(split_of(start, stop, shares=self.shares, seed=self.seed) == split)


@dataclass(frozen=True)
class Consecutive(Splitting):
    """Splits of ordered rows: `sizes` rows each, in order; later rows are unused. All but the first keep `context` rows before theirs."""

    sizes: tuple[int, ...]
    context: int = 0

    @classmethod
    def by_shares(cls, rows: int, shares: Shares, context: int = 0) -> Consecutive:
        edges = [*np.round(np.cumsum([0, *shares[:2]]) * rows).astype(int).tolist(), rows]
        return cls(tuple(np.diff(edges).tolist()), context)

    def rows_of(self, split: int, start: int, stop: int, raw: Arrays) -> np.ndarray:
        """Its context included."""
        first = sum(self.sizes[:split])
        low, high = max(first - self.context, 0, start), min(first + self.sizes[split], stop)
        return np.arange(low - start, max(low, high) - start)


@dataclass(frozen=True, eq=False)
class Stratified(Splitting):
    """As `drawn`, except for the rows of some classes, each of which was drawn by itself (`draw_by_class`)."""

    drawn: Drawn
    rows: np.ndarray
    splits: np.ndarray

    def rows_of(self, split: int, start: int, stop: int, raw: Arrays) -> np.ndarray:
        belongs = split_of(start, stop, shares=self.drawn.shares, seed=self.drawn.seed)
        low, high = np.searchsorted(self.rows, [start, stop])
        belongs[self.rows[low:high] - start] = self.splits[low:high]
        return np.flatnonzero(belongs == split)


@dataclass(frozen=True)
class ByColumn(Splitting):
    """Splits that a column names."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def rows_of(self, split: int, start: int, stop: int, raw: Arrays) -> np.ndarray:
        values, inverse = _values(raw[self.column], self.column)
        splits = [self._split(value) for value in values]
        if -1 in splits:
            odd = splits.index(-1)
            text = f"column {self.column}: {values[odd]!r} is not a split; write train, validation or test"
            raise DataError(text, int(np.argmax(inverse == odd)))
        return np.flatnonzero(np.array(splits, np.int8)[inverse] == split)

    def _split(self, value: Any) -> int:
        return SPELLINGS.get(str(value).strip().lower(), -1)


@dataclass(frozen=True)
class ByKey(ByColumn):
    """Splits drawn by a hash of a column's value: rows of one value share a split, wherever they are and whatever else there is."""

    shares: Shares
    seed: int

    def _split(self, value: Any) -> int:
        digest = hashlib.blake2b(f"{self.seed} {_spelt(value)}".encode(), digest_size=7).digest()
        uniform = int.from_bytes(digest, "big") / 2**56  # in [0, 1), the same on every machine
        return int(np.searchsorted(np.cumsum(self.shares[:2]), uniform, side="right"))


@dataclass(frozen=True)
class Given(Splitting):
    """Splits that are sources of their own, `sizes` rows each, one after another; those of no rows are cut from the first as `cut` says."""

    sizes: tuple[int, ...]
    cut: Splitting

    def rows_of(self, split: int, start: int, stop: int, raw: Arrays) -> np.ndarray:
        if split and self.sizes[split]:
            return Consecutive(self.sizes).rows_of(split, start, stop, raw)
        inside = min(stop, self.sizes[0])
        return self.cut.rows_of(split, start, inside, raw) if start < inside else np.empty(0, np.int64)


def splitting_of(data: Data, model: Workload, source: Source) -> Splitting:
    """The splitting that the settings ask for. Raises DataError, RecipeError."""
    splits, seed = data.splits, data.seed
    if isinstance(source, SplitSources):
        return _given(data, model, source)
    if splits.column:
        return ByColumn(splits.column)
    if model.ordered:
        if splits.key or splits.stratify:
            raise RecipeError("data.splits.key and stratify draw rows; rows that have an order are cut into consecutive parts")
        return _consecutive(data, model, source.rows())
    if splits.are_rows:
        raise RecipeError("data.splits: numbers of rows are for data that have an order; rows without one are drawn by shares")
    return ByKey(splits.key, splits.sizes, seed) if splits.key else Drawn(splits.sizes, seed)


def settled(data: Data, model: Workload, splitting: Splitting, source: Source, columns: Sequence[str]) -> Splitting:
    """The splitting once the labels are read: rare classes (data.splits.stratify: all) are drawn each by itself."""
    label = model.label_column
    drawn = splitting.cut if isinstance(splitting, Given) else splitting
    if not isinstance(drawn, Drawn) or data.splits.stratify is False or not label or label not in columns:
        return splitting
    rows = splitting.sizes[0] if isinstance(splitting, Given) else source.rows()
    labels = (raw[label] for raw in source.read(0, rows, [label]))
    by_class = draw_by_class(labels, drawn, rarer_than=None if data.splits.stratify else RARE_ROWS)
    return Given(splitting.sizes, by_class) if isinstance(splitting, Given) else by_class


def _consecutive(data: Data, model: Workload, rows: int) -> Consecutive:
    splits = data.splits
    if not splits.are_rows:
        return Consecutive.by_shares(rows, splits.sizes, model.context)
    if sum(splits.sizes) > rows:
        raise DataError(f"data.splits asks for {sum(splits.sizes):,.0f} rows, but {data.name} has {rows:,}")
    return Consecutive((int(splits.train), int(splits.validation), int(splits.test)), model.context)


def _given(data: Data, model: Workload, source: SplitSources) -> Given:
    """Splits given as sources; what is missing of them is cut from the training rows, in the proportion of its share to theirs."""
    sizes = dict(zip(source.names, source.sizes, strict=True))
    shares = [0.0 if split in sizes and split != "train" else share for split, share in zip(SPLITS, data.splits.sizes, strict=True)]
    by_shares = tuple(share / sum(shares) for share in shares)
    inner = Consecutive.by_shares(sizes["train"], by_shares, model.context) if model.ordered else Drawn(by_shares, data.seed)
    return Given(tuple(sizes.get(split, 0) for split in SPLITS), inner)


def split_of(start: int, stop: int, *, shares: Shares, seed: int) -> np.ndarray:
    """The split (index into SPLITS, int8) of each of the rows [start, stop)."""
    edges = np.round(np.cumsum(shares[:2]) * _BLOCK)
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = [np.random.default_rng([seed, block]).permutation(_BLOCK) for block in range(first, last)]
    places = np.concatenate(blocks)[start - first * _BLOCK : stop - first * _BLOCK] if blocks else np.empty(0)
    return np.searchsorted(edges, places, side="right").astype(np.int8)


def draw_by_class(labels: Iterable[np.ndarray], drawn: Drawn, *, rarer_than: int | None) -> Splitting:
    """Draw each class by itself, so that every split has some of it; `labels` of all rows, batch by batch, in order.

    With `rarer_than`, only classes of fewer rows. The first three rows of a class go one to each split, every further one to the split
    that lacks most of its share; so adding rows at the end moves no earlier row of a class that is drawn so.
    """
    limit = np.inf if rarer_than is None else rarer_than
    rows: dict[str, list[np.ndarray]] = {}
    counts: Counter[str] = Counter()
    place = 0
    for batch in labels:
        values, inverse = _different(batch)
        for number, label in enumerate(_spelt(value) for value in values):
            if counts[label] < limit:
                found = place + np.flatnonzero(inverse == number)
                rows.setdefault(label, []).append(found)
                counts[label] += len(found)
        place += len(batch)
    chosen = [np.concatenate(found) for label, found in rows.items() if counts[label] < limit]
    if not chosen:
        return drawn
    order = _in_turn(max(len(found) for found in chosen), drawn.shares)
    flat = np.concatenate(chosen)
    splits = np.concatenate([order[: len(found)] for found in chosen])
    by_row = np.argsort(flat)
    return Stratified(drawn, flat[by_row], splits[by_row])


def _in_turn(count: int, shares: Shares) -> np.ndarray:
    """The splits of the first `count` rows of a class."""
    turns, given = np.empty(count, np.int8), np.zeros(3)
    for row in range(count):
        lacks = np.array(shares) * (row + 1) - given
        lacks[given == 0] += count * (np.array(shares) > 0)[given == 0] if row < 3 else 0
        turns[row] = np.argmax(lacks)
        given[turns[row]] += 1
    return turns


def _values(column: np.ndarray, name: str) -> tuple[list[Any], np.ndarray]:
    """Distinct values of a column, and each row's index into them. Raises DataError where a value is missing."""
    if column.ndim > 1:
        raise DataError(f"column {name}: a value of it is an array of {column.shape[1:]}, which cannot decide a split")
    # NaN and NaT alone differ from themselves
    missing = [value is None for value in column] if column.dtype == object else column != column
    if any(missing):
        raise DataError(f"column {name}: is missing, so the row cannot be assigned to a split", int(np.argmax(missing)))
    return _different(column)


def _different(column: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Distinct values of a column, objects as their text, and each row's index into them."""
    plain = np.array([_spelt(value) for value in column]) if column.dtype == object or column.ndim > 1 else column
    values, inverse = np.unique(plain, return_inverse=True)
    return values.tolist(), inverse


def _spelt(value: Any) -> str:
    """A value as text, 3.0 as 3: where another row lacks a value, a reader gives a batch of integers as floats."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
