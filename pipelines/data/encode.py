"""Encode a piece of a source: read it, assign rows to splits, encode them, skip or refuse bad rows, count all.

A piece is encoded by one process, a few thousand rows at a time. Bad rows are found by halving: a batch that is refused is tried in halves,
and these in theirs, so a task's own check is enough and no task needs to know of the policy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pipelines.data import dataset
from pipelines.data.prefetch import side_by_side
from pipelines.data.source import Source
from pipelines.data.splits import SPLITS, Splitting
from pipelines.data.stats import Summary, counted, missing_in, row_hashes
from pipelines.data.store import Store
from pipelines.tracking.provenance import redact
from workloads.base import Arrays, DataError, Encoding, Workload

R = TypeVar("R")
Each = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""`each(work, pieces)`: the results in order, computed in this process or by cluster.ray_data."""


class Piece(NamedTuple):
    """Rows [start, stop) of a source, and the place of the piece in their order."""

    number: int
    start: int
    stop: int


def cut(source: Source, rows: int, piece_rows: int) -> list[Piece]:
    """Pieces of at least `piece_rows` rows where there are so many, beginning where reading can begin, for any number of workers."""
    edges = [0]
    for start in source.starts():
        if start - edges[-1] >= piece_rows and start < rows:
            edges.append(start)
    return [Piece(number, start, stop) for number, (start, stop) in enumerate(zip(edges, [*edges[1:], rows], strict=True)) if stop > start]


@dataclass(frozen=True)
class Selection:
    """The rows and columns of a source that are used, and the policy for bad rows."""

    source: Source
    columns: tuple[str, ...]
    splitting: Splitting
    workload: Workload
    skip: bool

    def batches(self, piece: Piece, *, also: Sequence[str] = ()) -> Iterator[Batch]:
        """The rows of a piece, batch by batch, with columns that others ask for.

        Raises DataError with its place for what cannot be used, unless bad rows are skipped.
        """
        row = piece.start
        wanted = tuple(dict.fromkeys([*self.columns, *self.splitting.columns, *also]))
        for raw in self.source.read(piece.start, piece.stop, wanted):
            batch = Batch(self, row, raw, also)
            yield batch
            row += batch.rows
        if row != piece.stop:
            much = f"{abs(piece.stop - row):,} rows {'more' if row < piece.stop else 'fewer'}"
            raise DataError(f"{self.source.label}, row {row:,}: there were {much} when they were counted; did it change?")

    def training(self, pieces: Sequence[Piece]) -> Iterator[tuple[Batch, np.ndarray, Arrays]]:
        """The training rows that any encoding could take, for `fit`: batch, rows of it, these as they are."""
        for batch in side_by_side(self.batches(piece) for piece in pieces):
            yield batch, *batch.usable(0)


class Batch:
    """Consecutive rows of a source, and the bad ones found among them."""

    def __init__(self, selection: Selection, start: int, raw: Arrays, also: Sequence[str] = ()) -> None:
        self._selection, self.start = selection, start
        self.rows = _rows(raw)
        self.raw = {name: raw[name] for name in selection.columns}
        self.also = {name: raw[name] for name in also}
        self.bad: dict[int, str] = {}
        self._deciding = {name: raw[name] for name in selection.splitting.columns}
        self._assignable = np.arange(self.rows)
        if self._deciding:
            rows_of = selection.splitting.rows_of
            self._assignable = _concatenated(self._tried(lambda raw: rows_of(0, 0, _rows(raw), raw), self._assignable, self._deciding))
        self._rows_of_split: dict[int, np.ndarray] = {}

    def of_split(self, split: int) -> np.ndarray:
        """The rows, counted from the batch's first, that are to be in a split."""
        if split not in self._rows_of_split:
            deciding = {name: column[self._assignable] for name, column in self._deciding.items()}
            rows = self._selection.splitting.rows_of(split, self.start, self.start + self.rows, deciding)
            self._rows_of_split[split] = self._assignable[rows] if deciding else rows
        return self._rows_of_split[split]

    def usable(self, split: int) -> tuple[np.ndarray, Arrays]:
        """The rows of a split that the task accepts, and their columns."""
        check = self._selection.workload.check if self._selection.skip else lambda raw: None
        chosen = _concatenated(self._tried(check, self.of_split(split), self.raw))
        return chosen, taken(chosen, self.raw)

    def encoded(self, split: int, encoding: Encoding) -> Iterator[dict[str, np.ndarray]]:
        """Stored rows of a split, in order."""
        for _, arrays in self._tried_encoding(split, encoding):
            yield arrays

    def numbers(self, split: int, encoding: Encoding) -> np.ndarray:
        """The rows, counted from the batch's first, of which `encoded` gives stored rows, where each gives one."""
        return _concatenated(self._tried_encoding(split, encoding)) if self._selection.skip else self.of_split(split)

    def place(self, row: int) -> str:
        return self._selection.source.place(self.start + row)

    def counts(self) -> Summary:
        """Counts of used, skipped and missing, once all splits are encoded."""
        bad = np.array(sorted(self.bad), np.int64)
        wanted = np.unique(np.concatenate([bad, *(self.of_split(split) for split in range(len(SPLITS)))]))
        examples = tuple(f"{self.place(row)}: {reason}" for row, reason in sorted(self.bad.items()))
        missing = missing_in({name: column[wanted] for name, column in self.raw.items()})
        return Summary(read=len(wanted), used=len(np.setdiff1d(wanted, bad)), skipped=len(bad), examples=examples[:10], missing=missing)

    def _tried_encoding(self, split: int, encoding: Encoding) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        return self._tried(lambda raw: self._selection.workload.encode(raw, encoding), self.of_split(split), self.raw)

    def _tried(self, work: Callable[[Arrays], R], rows: np.ndarray, columns: Arrays) -> Iterator[tuple[np.ndarray, R]]:
        bad = self.bad if self._selection.skip else None
        return tried(work, rows, columns, label=self._selection.source.label, place=self.place, bad=bad)


def tried(
    work: Callable[[Arrays], R],
    rows: np.ndarray,
    columns: Arrays,
    *,
    label: str,
    place: Callable[[int], str],
    bad: dict[int, str] | None,
) -> Iterator[tuple[np.ndarray, R]]:
    """`work` of `rows` of `columns`, in as few parts as the bad rows among them allow; these are put into `bad` with the reason.

    Where `bad` is None, the first bad row raises a DataError with its `place`, or the source's `label` where no single row is wrong.
    """
    if not len(rows):
        return
    try:
        part = taken(rows, columns)
        _check_read(part)
        done = work(part)
    except DataError as error:
        if bad is None:
            where = label if error.row is None else place(int(rows[error.row]))
            raise DataError(redact(f"{where}: {error}")) from None
        if len(rows) == 1:
            bad[int(rows[0])] = redact(str(error))  # what stands in a row may be an address with its password
            return
    else:
        yield rows, done
        return
    half = len(rows) // 2
    yield from tried(work, rows[:half], columns, label=label, place=place, bad=bad)
    yield from tried(work, rows[half:], columns, label=label, place=place, bad=bad)


def _rows(columns: Arrays) -> int:
    return len(next(iter(columns.values())))


def _concatenated(parts: Iterable[tuple[np.ndarray, Any]]) -> np.ndarray:
    """The rows of all parts of `tried`."""
    return np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])


def taken(rows: np.ndarray, columns: Arrays) -> Arrays:
    """Some rows of columns; the columns themselves where all rows are wanted."""
    return columns if len(rows) == _rows(columns) else {name: column[rows] for name, column in columns.items()}


def _check_read(raw: Arrays) -> None:
    """Raise the DataError that stands in place of a value which the reader could not read, with its row."""
    for name, column in raw.items():
        if column.dtype == object:
            for row, value in enumerate(column):
                if isinstance(value, DataError):
                    raise DataError(f"column {name}: {value}", row)


@dataclass(frozen=True)
class Encoder:
    """Encodes pieces and puts the parts into the folder `work` of a store."""

    selection: Selection
    encoding: Encoding
    store: Store
    work: str
    kept: tuple[str, ...] = SPLITS
    """Splits whose rows are stored; those of others are only counted."""

    def __call__(self, piece: Piece | Sequence[int]) -> dict[str, Any]:
        """{"summary": …, "parts": {split: [name, bytes]}} as JSON values. Raises DataError."""
        return self._stored(Piece(*piece), self.selection.batches(Piece(*piece)))

    def head(self, piece: Piece) -> dict[str, Any]:
        """The same of the first batch that has rows to be stored."""
        wanted = [number for number, split in enumerate(SPLITS) if split in self.kept]
        with_rows = (batch for batch in self.selection.batches(piece) if any(len(batch.of_split(number)) for number in wanted))
        return self._stored(piece, itertools.islice(with_rows, 1))

    def _stored(self, piece: Piece, batches: Iterable[Batch]) -> dict[str, Any]:
        summary, hashes, parts = Summary(), dict[str, list[np.ndarray]](), dict[str, list[Any]]()
        with self.store.workspace() as here:
            with dataset.parts(here) as add:
                for batch in batches:
                    for number, split in enumerate(SPLITS):
                        for arrays in batch.encoded(number, self.encoding):
                            summary += self._counts(split, arrays)
                            if split in self.kept:
                                add(split, arrays)
                                hashes.setdefault(split, []).append(self._hashes(arrays))
                    summary += batch.counts()
            for split, of_batches in hashes.items():
                name = f"{split}-{piece.number:06}"
                parts[split] = [name, (here / split).stat().st_size]
                self.store.put(here / split, self.work, f"{name}.part")
                np.save(here / "hashes.npy", np.concatenate(of_batches))
                self.store.put(here / "hashes.npy", self.work, f"{name}.npy")
        return {"summary": summary.model_dump(mode="json"), "parts": parts}

    def _counts(self, split: str, arrays: Arrays) -> Summary:
        label, length = self.selection.workload.label_column, self.selection.workload.length_column
        return Summary(
            splits={split: _rows(arrays)},
            classes={split: counted(arrays[label], getattr(self.encoding, "classes", ()))} if label and label in arrays else {},
            lengths={split: counted(arrays[length])} if length and length in arrays else {},
        )

    def _hashes(self, arrays: Arrays) -> np.ndarray:
        """Hashes of the network's inputs; empty where rows follow one another, for there a single row is no example."""
        inputs = {name: column for name, column in arrays.items() if name != self.selection.workload.target_column}
        return np.empty(0, np.uint64) if self.selection.workload.ordered else row_hashes(inputs)


def training_rows(selection: Selection, encoding: Encoding, piece: Piece) -> Iterator[dict[str, np.ndarray]]:
    """The training rows of a piece, encoded batch by batch; none is stored."""
    for batch in selection.batches(piece):
        yield from batch.encoded(0, encoding)
