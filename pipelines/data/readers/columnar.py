"""Parquet and Arrow files (Feather among them), read by pyarrow in pieces: a row group or record batch is never held as a whole.

But for one of compressed Arrow columns: their buffers can only be unpacked as a whole.

Not by pyarrow.dataset (25): it enters no Arrow file at a record batch, reads no Arrow stream, and reads several row groups ahead.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data.files import File, first_line
from pipelines.data.readers.planned import Plan, Planned, batch_rows, check_names, reading, to_numpy
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

_BUFFER_BYTES = 1 << 20  # read at a time of each column
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Columnar(Planned):
    """A file of parts, read from the start of any of them."""

    def _cut(self, batches: Iterator[pa.RecordBatch], first: int, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        """Rows [start, stop) out of batches that begin at row `first`, each validated before it is used."""
        at = first
        for batch in batches:
            low, high = max(start - at, 0), min(stop - at, batch.num_rows)
            at += batch.num_rows
            if low < high:
                _validate(batch, columns)
                size = batch_rows(batch.nbytes / batch.num_rows)
                for cut in range(low, high, size):
                    part = batch.slice(cut, min(size, high - cut))
                    yield {name: self._array(name, part.column(name)) for name in columns}
            if at >= stop:
                return
        raise DataError(f"{self.file.name}: ends before row {stop:,}, but {stop:,} rows were promised: it is damaged")

    def _array(self, name: str, column: pa.Array) -> np.ndarray:
        import pyarrow as pa

        try:
            values = to_numpy(pa.chunked_array([column]))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{self.file.name}: column {name!r} of type {column.type} cannot be read: {first_line(error)}") from error
        return values if values.flags.owndata else values.copy()  # else it may be the mapped file, which somebody may cut off

    def _parts(self, start: int, stop: int) -> list[int]:
        """The parts that hold rows of [start, stop)."""
        edges = itertools.pairwise(self._plan.edges)
        return [part for part, (low, high) in enumerate(edges) if max(low, start) < min(high, stop)]


class Parquet(Columnar):
    """A Parquet file; its parts are the row groups."""

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        groups = self._parts(start, stop)
        with reading(self.file, "Parquet"), self.file.open() as file:
            footer = _footer(self.file, self._plan.version)
            with _parquet(file, footer) as parquet:
                size = batch_rows(_row_bytes(footer, groups[0], columns))
                # one thread: the work is divided among processes already
                batches = parquet.iter_batches(size, row_groups=groups, columns=list(columns), use_threads=False)
                yield from self._cut(batches, self._plan.edges[groups[0]], start, stop, columns)

    @cached_property
    def _plan(self) -> Plan:
        version = self._version()
        with reading(self.file, "Parquet"):
            footer = _footer(self.file, version)
            self._check_version(version)
            names = footer.schema.to_arrow_schema().names
            check_names(self.file, names)
            counts = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            if min(counts, default=0) < 0 or sum(counts) != footer.num_rows:
                raise DataError(f"{self.file.name}: damaged: its footer promises {footer.num_rows:,} rows, its row groups {sum(counts):,}")
        return Plan(version, tuple(names), tuple(itertools.accumulate(counts, initial=0)))


class Arrow(Columnar):
    """An Arrow IPC file or stream (.arrow, .feather, .ipc), memory-mapped if it is local; its parts are the record batches.

    A stream that is not on this machine can only be read from its beginning.
    """

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        with self._opened([self._plan.names.index(name) for name in columns]) as (reader, _):
            parts = self._parts(start, stop) if _is_file(reader) else [0]
            batches = (reader.get_batch(part) for part in parts) if _is_file(reader) else iter(reader)
            yield from self._cut(batches, self._plan.edges[parts[0]], start, stop, columns)

    @cached_property
    def _plan(self) -> Plan:
        version = self._version()
        with self._opened() as (reader, _):
            schema, names = reader.schema, tuple(reader.schema.names)
        check_names(self.file, names)
        with self._opened([_narrowest(schema)]) as (reader, file):
            if _is_file(reader):
                counts = [_checked_length(reader.get_batch(part)) for part in range(reader.num_record_batches)]
            else:
                counts = [_checked_length(batch) for batch in reader]
                self._check_end(file)
                counts = counts if self.file.local else [sum(counts)]
        self._check_version(version)
        return Plan(version, names, tuple(itertools.accumulate(counts, initial=0)))

    @contextmanager
    def _opened(self, fields: Sequence[int] = ()) -> Iterator[tuple[Any, pa.NativeFile]]:
        """A reader of only these fields (of all, where none are given), and what it reads from. Raises DataError."""
        import pyarrow as pa
        import pyarrow.ipc

        # an empty file cannot be mapped
        mapped = self.file.local is not None and self.file.size() > 0
        with reading(self.file, "Arrow"), pa.memory_map(self.file.uri) if mapped else self.file.open() as opened:
            options = pa.ipc.IpcReadOptions(included_fields=list(fields), use_threads=False)
            magic = opened.read(6)
            opened.seek(0)
            if magic.startswith(b"FEA1"):
                raise DataError(f"{self.file.name}: is Feather of version 1; write it anew with pyarrow.feather.write_feather")
            with (pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream)(opened, options=options) as reader:
                yield reader, opened

    def _check_end(self, opened: pa.NativeFile) -> None:
        """pyarrow takes a stream that is cut off between two batches for ended."""
        end, size = opened.tell(), opened.size()
        opened.seek(max(size - len(_END_OF_STREAM), 0))
        if end != size or opened.read() != _END_OF_STREAM:
            raise DataError(f"{self.file.name}: its end mark is missing: it is truncated or damaged, or was never closed")


@functools.lru_cache(maxsize=64)
def _footer(file: File, version: str) -> pyarrow.parquet.FileMetaData:
    with file.open() as opened, _parquet(opened) as parquet:
        return parquet.metadata


def _parquet(opened: pa.NativeFile, footer: pyarrow.parquet.FileMetaData | None = None) -> pyarrow.parquet.ParquetFile:
    import pyarrow.parquet

    # pre_buffer would hold the columns of a whole row group
    return pyarrow.parquet.ParquetFile(
        opened, metadata=footer, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
    )


def _row_bytes(footer: pyarrow.parquet.FileMetaData, group: int, columns: Sequence[str]) -> float:
    """Bytes of a row of `columns`, uncompressed."""
    described = footer.row_group(group)
    chunks = [described.column(number) for number in range(described.num_columns)]
    wanted = tuple(f"{name}." for name in columns)
    return sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(wanted)) / described.num_rows


def _is_file(reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> bool:
    return hasattr(reader, "get_batch")


def _narrowest(schema: pa.Schema) -> int:
    """The field that is cheapest to read, in order to count rows."""
    import pyarrow as pa

    kinds = [field.type for field in schema]
    return min(range(len(kinds)), key=lambda field: kinds[field].bit_width if pa.types.is_primitive(kinds[field]) else 1 << 16)


def _checked_length(batch: pa.RecordBatch) -> int:
    batch.validate()
    return batch.num_rows


def _validate(batch: pa.RecordBatch, columns: Sequence[str]) -> None:
    """Damaged offsets may point outside of memory: pyarrow itself looks at none while it reads."""
    import pyarrow as pa

    for name in columns:
        column = batch.column(name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):  # text that is not UTF-8 is reported with its row
            column = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        column.validate(full=True)
