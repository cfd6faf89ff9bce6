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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipelines import sealed
from pipelines.data.files import File, first_line
from pipelines.data.readers.columnar import to_numpy
from pipelines.data.readers.planned import Plan, Planned, batch_rows, check_names
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
            return _opened(path, *_stamps(path))
        self._write(path, version)
        try:
            return _opened(path, *_stamps(path))
        except sealed.DamagedError as error:
            raise StorageError(f"{path}: is not what was written there: {error}") from error

    def _write(self, path: Path, version: str) -> None:
        """Parse the file into `path`; processes that do so at once end with the same."""
        bad = BadRows(self.file, self.skip)
        with partial_beside(path) as partial:
            edges = write(partial, self._parse(bad), self.file)
            self._check_version(version)
            with keeping(path):
                made = sealed.describe(partial).model_dump()
                os.replace(partial, path)
                card = {"file": made, "edges": edges, "skipped": bad.rows, "examples": bad.examples}
                sealed.write_atomically(_card(path), sealed.card(card))


class _Cached:
    """An Arrow file and its card. Raises DamagedError where they are not what was written."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        try:
            card = sealed.card_content(_card(path).read_bytes())
            content = {path.name: sealed.File(**card["file"])}
            wrong = sealed.mismatch_since(path.with_suffix(".proof"), path.parent, content)
        except (OSError, LookupError, TypeError) as error:
            raise sealed.DamagedError(first_line(error)) from error
        if wrong:
            raise sealed.DamagedError(wrong)
        self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.edges, self.skipped, self.examples = tuple(card["edges"]), array("q", card["skipped"]), tuple(card["examples"])


@functools.lru_cache(maxsize=16)
def _opened(path: Path, *stamps: tuple[int, ...]) -> _Cached:
    return _Cached(path)


def _stamps(path: Path) -> list[tuple[int, ...]]:
    """What distinguishes a file and its card from others that took their place, or that were changed there."""
    try:
        return [sealed.stamp(path), sealed.stamp(_card(path))]
    except OSError as error:
        raise sealed.DamagedError(first_line(error)) from error


def _card(path: Path) -> Path:
    return path.with_suffix(".json")


def in_file(row: int, skipped: Sequence[int]) -> int:
    """The number that a file itself gives to the row that has number `row` once the rows `skipped` (ascending) are left out."""
    return row + bisect.bisect_right(range(len(skipped)), row, key=lambda number: skipped[number] - number)


def blocks(file: File) -> Iterator[bytes]:
    """The unpacked content, BLOCK_BYTES at a time. Raises DataError, also if there is none."""
    done = 0
    try:
        with file.stream() as stream:
            while block := stream.read(BLOCK_BYTES):
                done += len(block)
                yield block
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read behind byte {done:,}: {first_line(error)}") from None
    if not done:
        raise DataError(f"{file.name}: is empty")


def line_blocks(file: File) -> Iterator[bytes]:
    """The content in blocks of whole lines; only the last may lack its line end. Raises DataError."""
    rest: list[bytes] = []
    for block in blocks(file):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, block[:end]])
            rest = []
        rest.append(block[end:])
        if len(rest) * BLOCK_BYTES > LONGEST_ROW_BYTES:
            raise DataError(f"{file.name}: has a line of more than {LONGEST_ROW_BYTES:,} bytes")
    if last := b"".join(rest):
        yield last


@contextmanager
def partial_beside(path: Path) -> Iterator[Path]:
    """A new name beside `path`; what lies there in the end is deleted."""
    partial = sealed.partial(path)
    with keeping(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def keeping(path: Path) -> Iterator[None]:
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
    with keeping(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        for batch in _small(itertools.chain([first], batches)):
            writer.write_batch(batch)
            edges.append(edges[-1] + batch.num_rows)
    return edges


def _small(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        size = batch_rows(batch.nbytes / max(batch.num_rows, 1))
        yield from (batch.slice(low, size) for low in range(0, batch.num_rows, size))
