"""Files that cannot be entered at any row: parsed once into an Arrow file of this machine, from then on memory-mapped and read at any row.

The Arrow file lies in `scratch/.parsed`, named by what it was made from, and beside it a card: its size and hash, which batches hold which
rows, and what the parser left out. Both are renamed into place, the card last. Nothing of the file is believed before its hash was compared
(once for each node and change); what is damaged is made anew.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pipelines import sealed
from pipelines.data.files import File, first_line
from pipelines.data.readers.planned import Plan, Planned, batch_rows, check_names, to_numpy
from pipelines.data.source import EXAMPLES, Skipped
from pipelines.errors import StorageError
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 8 << 20
"""Read and parsed at a time."""
LONGEST_ROW_BYTES = 256 << 20


class BadRows:
    """Rows that a parser leaves out, as the file counts them; where nothing is to be skipped the first of them is raised."""

    def __init__(self, file: File, skip: bool) -> None:
        self._file, self._skip = file, skip
        self._rows, self._first = array("q"), list[tuple[int, str]]()

    def add(self, row: int, problem: str) -> None:
        """Raises DataError unless rows may be skipped."""
        sentence = f"{self._file.name}, row {row:,}: {problem}"
        if not self._skip:
            raise DataError(sentence)
        self._rows.append(row)
        self._first = sorted([*self._first, (row, sentence)])[:EXAMPLES]

    @property
    def rows(self) -> list[int]:
        return sorted(self._rows)

    @property
    def examples(self) -> list[str]:
        return [sentence for _, sentence in self._first]


@dataclass(frozen=True)
class Parsed(Planned):
    """A reader of what a parser made of a file; each format is a subclass. `skip`: leave bad rows out and count them.

    The plan is made once and travels with the reader: if the file changes afterwards, its rows are not read as those that were planned.
    """

    scratch: Path
    skip: bool = False
    parser: ClassVar[str]
    """The format and the version of its parser: raise the number when rows come out otherwise."""

    @abstractmethod
    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        """All rows but the bad ones, in batches of one schema; at least one, even if it has no rows. Raises DataError."""

    def skipped(self) -> Skipped:
        cached = self._cached(self._plan.version)
        return Skipped(len(cached.skipped), cached.examples)

    def place(self, row: int) -> str:
        return f"{self.file.name}, row {in_file(row, self._cached(self._plan.version).skipped):,}"

    @cached_property
    def _plan(self) -> Plan:
        version = self._version()
        cached = self._cached(version)
        return Plan(version, tuple(cached.reader.schema.names), cached.edges)

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        import pyarrow as pa

        number = bisect.bisect_right(self._plan.edges, start) - 1
        while start < stop:
            low, high = self._plan.edges[number : number + 2]
            batch = self._cached(self._plan.version).reader.get_batch(number)
            part = batch.slice(start - low, min(high, stop) - start)
            yield {name: to_numpy(pa.chunked_array([part.column(name)])) for name in columns}
            start, number = high, number + 1

    def _cached(self, version: str) -> _Cached:
        import pyarrow as pa

        made_from = [self.file.uri, version, self.skip, self.parser, pa.__version__]
        path = self.scratch / ".parsed" / f"{sealed.digest(made_from)[:32]}.arrow"
        with suppress(sealed.DamagedError):
            return _opened(path)
        self._write(path, version)
        try:
            return _opened(path)
        except sealed.DamagedError as error:
            raise StorageError(f"{path}: is not what was written there: {error}") from error

    def _write(self, path: Path, version: str) -> None:
        """Parse the file into `path`; processes that do so at once end with the same."""
        bad = BadRows(self.file, self.skip)
        with partial_beside(path) as partial:
            edges = write(partial, self._parse(bad), self.file)
            self._check_version(version)
            with writing_to(path):
                card = {"file": sealed.describe(partial).model_dump(), "edges": edges, "skipped": bad.rows, "examples": bad.examples}
                os.replace(partial, path)
                sealed.write_atomically(path.with_suffix(".json"), sealed.card(card))


class _Cached(NamedTuple):
    """A parsed file, and what its card says: the row at which each batch begins, the rows left out, and the first of these as sentences."""

    reader: pa.RecordBatchFileReader
    edges: tuple[int, ...]
    skipped: Sequence[int]
    examples: tuple[str, ...]


def _opened(path: Path) -> _Cached:
    """Raises DamagedError where the file and its card are not what was written."""
    try:
        return _proven(path, sealed.stamp(path), sealed.stamp(path.with_suffix(".json")))
    except (OSError, LookupError, TypeError) as error:
        raise sealed.DamagedError(first_line(error)) from error


@functools.lru_cache(maxsize=16)
def _proven(path: Path, *stamps: tuple[int, ...]) -> _Cached:
    """`stamps` distinguish the file and its card from others that took their place, or that were changed there."""
    import pyarrow as pa

    card = sealed.card_content(path.with_suffix(".json").read_bytes())
    if wrong := sealed.mismatch_since(path.with_suffix(".proof"), path.parent, {path.name: sealed.File(**card["file"])}):
        raise sealed.DamagedError(wrong)
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return _Cached(reader, tuple(card["edges"]), array("q", card["skipped"]), tuple(card["examples"]))


def in_file(row: int, skipped: Sequence[int]) -> int:
    """The number that a file itself gives to the row that has number `row` once the rows `skipped` (ascending) are left out."""
    return row + bisect.bisect_right(range(len(skipped)), row, key=lambda number: skipped[number] - number)


@contextmanager
def partial_beside(path: Path) -> Iterator[Path]:
    """A new name beside `path`; what lies there in the end is deleted."""
    partial = sealed.partial(path)
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Blame what fails inside on the disk that holds `path`: StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path.parent} cannot be written: {error.strerror or first_line(error)}") from error


def write(path: Path, batches: Iterator[pa.RecordBatch], file: File) -> list[int]:
    """Write an Arrow file of batches that are small enough to be read at once; the row behind each of them, 0 first."""
    import pyarrow as pa

    first = next(batches)
    check_names(file, first.schema.names)
    edges = [0]
    with writing_to(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        for batch in itertools.chain([first], batches):
            size = batch_rows(batch.nbytes / max(batch.num_rows, 1))
            for low in range(0, batch.num_rows, size):
                writer.write_batch(part := batch.slice(low, size))
                edges.append(edges[-1] + part.num_rows)
    return edges
