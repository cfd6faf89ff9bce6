"""Files that cannot be entered at any row: parsed once into an Arrow file of this machine, from then on memory-mapped and read at any row.

The Arrow file lies in `scratch/.staged`, named by what it was made from, and beside it a card that tells which bytes hold which rows,
their checksums and what the parser left out. Both are renamed into place, the card last, and no byte is believed before its checksum was
compared; what is damaged is made anew.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import os
import uuid
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.files import File, first_line
from pipelines.data.readers.columns import to_numpy
from pipelines.data.readers.planned import Plan, Planned, check_names, check_version
from pipelines.data.source import BATCH_ROWS, Skipped
from pipelines.errors import StorageError
from pipelines.sealed import write_atomically
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 8 << 20
"""Read and parsed at a time."""
LONGEST_ROW_BYTES = 256 << 20
_TOLD = 10


class LeftOut:
    """Rows that the parser of a file leaves out, as the file counts them; where nothing is to be skipped the first of them is raised."""

    def __init__(self, file: File, skip: bool) -> None:
        self._file, self._skip = file, skip
        self._rows, self._told = array("q"), list[tuple[int, str]]()

    def add(self, row: int, what: str) -> None:
        """Raises DataError unless rows may be skipped."""
        sentence = f"{self._file.name}, row {row:,}: {what}"
        if not self._skip:
            raise DataError(sentence)
        self._rows.append(row)
        self._told = sorted([*self._told, (row, sentence)])[:_TOLD]

    @property
    def rows(self) -> list[int]:
        return sorted(self._rows)

    @property
    def examples(self) -> list[str]:
        return [sentence for _, sentence in self._told]


@dataclass(frozen=True)
class Staged(Planned):
    """What the formats share; each says how its file is parsed. `skip`: leave bad rows out and count them, instead of a DataError.

    The plan is made once and travels with the reader: if the file changes afterwards, its rows are not read as those that were planned.
    """

    scratch: Path
    skip: bool = False

    def skipped(self) -> Skipped:
        mapped = self._mapped(self._plan.version)
        return Skipped(len(mapped.skipped), mapped.examples)

    def place(self, row: int) -> str:
        return f"{self.file.name}, row {in_file(row, self._mapped(self._plan.version).skipped):,}"

    @abstractmethod
    def _parsed(self, left_out: LeftOut) -> Iterator[pa.RecordBatch]:
        """All rows but those left out, in batches of one schema; at least one, even if it has no rows. Raises DataError."""

    @property
    @abstractmethod
    def _parser(self) -> str:
        """What decides how a file is parsed, besides the file: raise the number of a format when its rows come out otherwise."""

    @cached_property
    def _plan(self) -> Plan:
        version = self.file.version()
        mapped = self._mapped(version)
        return Plan(version, mapped.names, mapped.edges)

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        import pyarrow as pa

        edges = self._plan.edges
        number = bisect.bisect_right(edges, start) - 1
        while start < stop:
            high = min(edges[number + 1], stop)
            part = self._batch(number).slice(start - edges[number], high - start)
            yield {name: to_numpy(pa.chunked_array([part.column(name)])) for name in columns}
            start, number = high, number + 1

    def _batch(self, number: int) -> pa.RecordBatch:
        version = self._plan.version
        with suppress(_DamagedError):
            return self._mapped(version).batch(number)
        self._stage(self._path(version), version)
        return self._mapped(version).batch(number)

    def _mapped(self, version: str) -> _Mapped:
        path = self._path(version)
        with suppress(_DamagedError):
            return _opened(path, *_stamps(path))
        self._stage(path, version)
        return _opened(path, *_stamps(path))

    def _path(self, version: str) -> Path:
        import pyarrow as pa

        made_from = json.dumps([self.file.uri, version, self.skip, self._parser, pa.__version__])
        return self.scratch / ".staged" / f"{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.arrow"

    def _stage(self, path: Path, version: str) -> None:
        """Parse the file into `path`; processes that do so at once end with the same."""
        left_out = LeftOut(self.file, self.skip)
        with partial_beside(path) as partial:
            batches = self._parsed(left_out)
            edges, ends = write(partial, batches, self.file)
            check_version(self.file, version)
            card: dict[str, Any] = {"edges": edges, "ends": ends, "checksums": _checksums(partial, ends)}
            card |= {"skipped": left_out.rows, "examples": left_out.examples}
            with keeping(path):
                os.replace(partial, path)
                write_atomically(_card(path), json.dumps([card, _seal(card)]))


def in_file(row: int, skipped: Sequence[int]) -> int:
    """The number that a file itself gives to the row that has number `row` once the rows `skipped` (ascending) are left out."""
    return row + bisect.bisect_right(range(len(skipped)), row, key=lambda number: skipped[number] - number)


def blocks(file: File) -> Iterator[bytes]:
    """The unpacked content, BLOCK_BYTES at a time. Raises DataError, also if there is none."""
    found = 0
    try:
        with file.stream() as stream:
            while block := stream.read(BLOCK_BYTES):
                found += len(block)
                yield block
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read behind byte {found:,}: {first_line(error)}") from None
    if not found:
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
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with keeping(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """What fails inside is the fault of the disk that holds `path`: StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path.parent} cannot be written: {error.strerror or first_line(error)}") from error


class _DamagedError(StorageError):
    """A staged file is not there, or is not what was written: a person is told of it if that is so again once it was made anew."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: is not what was written there")


class _Mapped:
    """A staged file in memory; raises _DamagedError for what is not as its card says."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._path = path
        try:
            card, seal = json.loads(_card(path).read_bytes())
            self._content = pa.memory_map(str(path)).read_buffer()
        except (OSError, ValueError, TypeError) as error:
            raise _DamagedError(path) from error
        if seal != _seal(card) or card["ends"][-1] != self._content.size:
            raise _DamagedError(path)
        self.edges, self.skipped, self.examples = tuple(card["edges"]), array("q", card["skipped"]), tuple(card["examples"])
        self._ends, self._checksums, self._proved = card["ends"], card["checksums"], set[int]()
        self._prove(0)
        self._prove(len(self._ends) - 1)
        self._reader = pa.ipc.open_file(pa.BufferReader(self._content))
        self.names = tuple(self._reader.schema.names)

    def batch(self, number: int) -> pa.RecordBatch:
        self._prove(number + 1)
        return self._reader.get_batch(number)

    def _prove(self, piece: int) -> None:
        if piece not in self._proved:
            if zlib.crc32(_piece(self._content, self._ends, piece)) != self._checksums[piece]:
                raise _DamagedError(self._path)
            self._proved.add(piece)


@functools.lru_cache(maxsize=16)
def _opened(path: Path, *stamps: int) -> _Mapped:
    return _Mapped(path)


def _stamps(path: Path) -> tuple[int, ...]:
    """What tells a staged file from one that took its place, or was changed there."""
    try:
        stats = [path.stat(), _card(path).stat()]
    except OSError as error:
        raise _DamagedError(path) from error
    return tuple(number for stat in stats for number in (stat.st_ino, stat.st_size, stat.st_mtime_ns))


def _card(path: Path) -> Path:
    return path.with_suffix(".json")


def _seal(card: Any) -> str:
    return hashlib.sha256(json.dumps(card).encode()).hexdigest()


def write(path: Path, batches: Iterator[pa.RecordBatch], file: File) -> tuple[list[int], list[int]]:
    """The row behind each batch (0 first), and the byte behind each piece: the head, every batch, the tail."""
    import pyarrow as pa

    first = next(batches)
    check_names(file, first.schema.names)
    edges = [0]
    with keeping(path), pa.OSFile(str(path), "wb") as sink:
        with pa.ipc.new_file(sink, first.schema) as writer:
            ends = [sink.tell()]
            for batch in _of_few_rows(itertools.chain([first], batches)):
                writer.write_batch(batch)
                edges.append(edges[-1] + batch.num_rows)
                ends.append(sink.tell())
        ends.append(sink.tell())
    return edges, ends


def _of_few_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield from (batch.slice(low, BATCH_ROWS) for low in range(0, batch.num_rows, BATCH_ROWS))


def _checksums(path: Path, ends: Sequence[int]) -> list[int]:
    import pyarrow as pa

    content = pa.memory_map(str(path)).read_buffer()
    return [zlib.crc32(_piece(content, ends, piece)) for piece in range(len(ends))]


def _piece(content: pa.Buffer, ends: Sequence[int], number: int) -> pa.Buffer:
    low = ends[number - 1] if number else 0
    return content.slice(low, ends[number] - low)
