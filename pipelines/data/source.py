"""A source of raw rows, whatever its format: numbered rows, read in ranges by any process, a few thousand at a time.

A *reader* reads one file. A *source* is all that a recipe names: files one after another, under the column names of the task. All are
frozen and picklable. Row numbers count the rows that can be read; `skipped` reports the rows that a reader left out itself
(data.on_bad_row=skip).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from workloads.base import Arrays, DataError

BATCH_ROWS = 8192
"""Most rows that a reader gives at once."""
EXAMPLES = 10
"""Most skipped rows that are described."""


@dataclass(frozen=True)
class Skipped:
    """Rows that were left out: their number, and the first ten as sentences (file, row, problem)."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def __add__(self, other: Skipped) -> Skipped:
        return Skipped(self.count + other.count, (*self.examples, *other.examples)[:EXAMPLES])


class Reader(Protocol):
    def columns(self) -> tuple[str, ...]:
        """The column names. Raises DataError."""

    def rows(self) -> int:
        """The number of rows that can be read. Raises DataError."""

    def starts(self) -> Sequence[int]:
        """Row numbers, 0 first, at which reading can begin without reading what lies before: work is divided there."""

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        """Rows [start, stop) of `columns` in order, at most BATCH_ROWS at a time. Raises DataError, its row counted within the batch.

        Numbers; Python strings or bytes (dtype object), None where one is missing; a DataError in place of a value that cannot be read.
        """

    def skipped(self) -> Skipped:
        """The rows that the reader left out itself."""
        return Skipped()

    def place(self, row: int) -> str:
        """The place of a row for people: its file, and its number there, from 0."""


class Source(Reader, Protocol):
    @property
    def label(self) -> str:
        """A short name, for run names and people."""

    def identity(self) -> dict[str, str]:
        """File -> hash of its content, or package -> version. Equal identities mean equal rows. Cheap the second time."""


class Concatenated:
    """Readers one after another, as one."""

    readers: Sequence[Reader]

    def rows(self) -> int:
        return self._edges[-1]

    def starts(self) -> list[int]:
        return [edge + start for edge, reader in zip(self._edges, self.readers, strict=False) if reader.rows() for start in reader.starts()]

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        for edge, reader in zip(self._edges, self.readers, strict=False):
            low, high = max(start - edge, 0), min(stop - edge, reader.rows())
            if low < high:
                yield from reader.read(low, high, columns)

    def skipped(self) -> Skipped:
        return sum((reader.skipped() for reader in self.readers), Skipped())

    def place(self, row: int) -> str:
        number = bisect.bisect_right(self._edges, row) - 1
        return self.readers[number].place(row - self._edges[number])

    @property
    def sizes(self) -> list[int]:
        return [reader.rows() for reader in self.readers]

    @cached_property
    def _edges(self) -> list[int]:
        """The row at which each reader begins, and the row behind the last."""
        return list(itertools.accumulate(self.sizes, initial=0))


@dataclass(frozen=True)
class SplitSources(Concatenated):
    """Splits that are sources of their own, one after another; `names` are those of the splits."""

    names: tuple[str, ...]
    readers: tuple[Source, ...]

    @property
    def label(self) -> str:
        return self.readers[0].label

    def identity(self) -> dict[str, str]:
        parts = zip(self.names, self.readers, strict=True)
        return {f"{split}: {name}": content for split, source in parts for name, content in source.identity().items()}

    def columns(self) -> tuple[str, ...]:
        """The columns that all splits have, in the order of the first."""
        others = [set(source.columns()) for source in self.readers[1:]]
        return tuple(name for name in self.readers[0].columns() if all(name in columns for columns in others))


class Wrapper:
    """Another source, to be changed where a subclass says so."""

    source: Source

    @property
    def label(self) -> str:
        return self.source.label

    def identity(self) -> dict[str, str]:
        return self.source.identity()

    def columns(self) -> tuple[str, ...]:
        return self.source.columns()

    def rows(self) -> int:
        return self.source.rows()

    def starts(self) -> Sequence[int]:
        return self.source.starts()

    def skipped(self) -> Skipped:
        return self.source.skipped()

    def place(self, row: int) -> str:
        return self.source.place(row)


@dataclass(frozen=True)
class Renamed(Wrapper):
    """A source under other column names: `names` maps those that the task asks for to the source's own."""

    source: Source
    names: tuple[tuple[str, str], ...]

    def identity(self) -> dict[str, str]:
        return self.source.identity() | {f"column {ours}": theirs for ours, theirs in self.names}

    def columns(self) -> tuple[str, ...]:
        ours = {theirs: ours for ours, theirs in self.names}
        present = self.source.columns()
        if missing := [theirs for theirs in ours if theirs not in present]:
            raise DataError(f"data.columns: there is no column {missing[0]!r}; columns: {', '.join(present)}")
        return tuple(ours.get(name, name) for name in present)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        theirs = dict(self.names)
        for raw in self.source.read(start, stop, [theirs.get(name, name) for name in columns]):
            yield {name: raw[theirs.get(name, name)] for name in columns}


def batches_of(columns: Arrays, start: int, stop: int) -> Iterator[Arrays]:
    """Rows [start, stop) of columns in memory, BATCH_ROWS at a time."""
    for low in range(start, stop, BATCH_ROWS):
        yield {name: column[low : min(low + BATCH_ROWS, stop)] for name, column in columns.items()}


def even_starts(rows: int) -> range:
    """The starts of a reader that can begin anywhere."""
    return range(0, max(rows, 1), BATCH_ROWS)


def joined(batches: Sequence[Arrays]) -> Arrays:
    """Several batches as one."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]} if batches else {}
