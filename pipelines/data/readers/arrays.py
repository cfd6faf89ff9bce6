"""numpy's files, read by seeking and never mapped: a mapped file that somebody cuts off kills the process that reads it.

What was pickled into them is never loaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pipelines.data.readers.planned import Plan, Planned, batch_rows, check_names, check_version, reading
from pipelines.data.source import even_starts
from workloads.base import Arrays, DataError

_KINDS = "biufcmMSU"
_WHOLE_BYTES = 1 << 30


@dataclass(frozen=True)
class _Header:
    """What stands before an array: its shape, type, whether its first axis varies fastest (Fortran's order), and how long this is."""

    shape: tuple[int, ...]
    kind: np.dtype
    fortran: bool
    length: int

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.kind.itemsize

    @property
    def by_column(self) -> bool:
        """Whether a row lies scattered over the file."""
        return self.fortran and prod(self.shape[1:]) > 1


class Npy(Planned):
    """An .npy file: one column, named as the file."""

    def starts(self) -> Sequence[int]:
        return even_starts(self.rows())

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        with reading(self.file, ".npy"), self.file.open() as file:
            header = _header(file, self.file.name)
            for low in range(start, stop, step := batch_rows(header.row_bytes)):
                high = min(low + step, stop)
                found = _by_column(file, header, low, high) if header.by_column else _rows(file, header, low, high)
                _check_length(self.file.name, found, low, high)
                yield {name: _plain(found) for name in columns}

    @cached_property
    def _plan(self) -> Plan:
        version = self.file.version()
        with reading(self.file, ".npy"), self.file.open() as file:
            header = _header(file, self.file.name)
            _check_size(self.file.name, header, file.size())
        return Plan(version, (Path(self.file.name).stem,), (0, header.shape[0]))


class Npz(Planned):
    """An .npz file: its arrays are the columns, all with as many rows. Reading begins at its beginning, so that checksums are compared.

    An array in Fortran's order is held as a whole, being scattered over the file.
    """

    def starts(self) -> Sequence[int]:
        return (0,)

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        with reading(self.file, ".npz"), self.file.open() as file, zipfile.ZipFile(cast(IO[bytes], file)) as archive, ExitStack() as stack:
            opened = {name: stack.enter_context(archive.open(f"{name}.npy")) for name in columns}
            arrays = {name: _Member(f"{self.file.name}: {name}", member, start) for name, member in opened.items()}
            step = batch_rows(sum(array.header.row_bytes for array in arrays.values()))
            for low in range(start, stop, step):
                batch = {name: array.take(low, min(low + step, stop)) for name, array in arrays.items()}
                if low + step >= self.rows():
                    for member in opened.values():
                        member.read(1)  # the end is where a checksum is compared
                yield batch

    @cached_property
    def _plan(self) -> Plan:
        version = self.file.version()
        with reading(self.file, ".npz"), self.file.open() as file, zipfile.ZipFile(cast(IO[bytes], file)) as archive:
            names = [member.filename for member in archive.infolist()]
            if odd := [name for name in names if not name.endswith(".npy")]:
                raise DataError(f"{self.file.name}: holds {odd[0]!r}, which is no .npy array")
            columns = [name.removesuffix(".npy") for name in names]
            check_names(self.file, columns)
            rows = [self._rows_of(archive, member, column) for member, column in zip(archive.infolist(), columns, strict=True)]
        check_version(self.file, version)
        if len(set(rows)) > 1:
            odd_one = next(place for place, count in enumerate(rows) if count != rows[0])
            there, told = f"{rows[0]:,} in {columns[0]}", f"{rows[odd_one]:,} in {columns[odd_one]}"
            raise DataError(f"{self.file.name}: its arrays differ in rows: {there}, {told}")
        return Plan(version, tuple(columns), (0, rows[0]))

    def _rows_of(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, column: str) -> int:
        place = f"{self.file.name}: {column}"
        with archive.open(member) as opened:
            header = _header(opened, place)
        _check_size(place, header, member.file_size)
        if header.by_column and header.row_bytes * header.shape[0] > _WHOLE_BYTES:
            raise DataError(f"{place}: lies in Fortran's order and is too large for it; save it with numpy.ascontiguousarray")
        return header.shape[0]


class _Member:
    """An array of an archive, of which rows are taken in order, from `start` on."""

    def __init__(self, place: str, opened: IO[bytes], start: int) -> None:
        self.header = _header(opened, place)
        self._place, self._opened = place, opened
        if self.header.by_column:
            self._whole = _rows(opened, self.header, 0, self.header.shape[0], sought=True)
            _check_length(place, self._whole, 0, self.header.shape[0])
        else:
            opened.seek(start * self.header.row_bytes, 1)

    def take(self, low: int, high: int) -> np.ndarray:
        if self.header.by_column:
            return _plain(self._whole[low:high])
        found = _rows(self._opened, self.header, low, high, sought=True)
        _check_length(self._place, found, low, high)
        return _plain(found)


def _header(file: Any, place: str) -> _Header:
    """The header at the beginning of a file. Raises DataError for arrays that cannot be rows, and whatever numpy does for damaged ones."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{place}: its format {version[0]}.{version[1]} has named fields; save each as an array of its own")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(file)
    if kind.hasobject:
        raise DataError(f"{place}: holds Python objects, which are pickled and so never loaded; save numbers or strings")
    if kind.kind not in _KINDS or kind.itemsize == 0:
        raise DataError(f"{place}: holds {kind}; save numbers or strings, each field as an array of its own")
    if not shape or min(shape) < 0 or 0 in shape[1:]:
        raise DataError(f"{place}: its shape {shape} has no rows")
    return _Header(shape, kind, fortran, file.tell())


def _check_size(place: str, header: _Header, there: int) -> None:
    """Nothing is allocated on the word of a header."""
    promised = header.length + header.shape[0] * header.row_bytes
    if there < promised:
        row = max(there - header.length, 0) // header.row_bytes
        raise DataError(f"{place}: ends in row {row:,}, but its header promises {header.shape[0]:,}")
    if there > promised:
        raise DataError(f"{place}: goes on after the {header.shape[0]:,} rows that its header promises")


def _check_length(place: str, found: np.ndarray, low: int, high: int) -> None:
    if len(found) != high - low:
        raise DataError(f"{place}: ends in row {low + len(found):,}: it is damaged, or has changed since its rows were counted")


def _rows(file: Any, header: _Header, low: int, high: int, *, sought: bool = False) -> np.ndarray:
    """Rows [low, high), as many as there are."""
    if not sought:
        file.seek(header.length + low * header.row_bytes)
    content = file.read((high - low) * header.row_bytes)
    if header.by_column and len(content) == (high - low) * header.row_bytes:
        return np.frombuffer(content, header.kind).reshape(header.shape, order="F")
    whole = len(content) // header.row_bytes
    return np.frombuffer(content[: whole * header.row_bytes], header.kind).reshape(whole, *header.shape[1:])


def _by_column(file: Any, header: _Header, low: int, high: int) -> np.ndarray:
    """Rows [low, high) of an array whose first axis varies fastest: a piece of each of its columns."""
    pieces = np.empty((prod(header.shape[1:]), high - low), header.kind)
    for number, piece in enumerate(pieces):
        file.seek(header.length + (number * header.shape[0] + low) * header.kind.itemsize)
        content = file.read(piece.nbytes)
        if len(content) < piece.nbytes:
            return pieces[:0].T
        piece[:] = np.frombuffer(content, header.kind)
    return pieces.T.reshape(high - low, *header.shape[1:], order="F") if low < high else pieces.T


def _plain(found: np.ndarray) -> np.ndarray:
    """As a task is given it: strings and bytes as objects, numbers in this machine's byte order, booleans as 0 and 1."""
    if found.dtype.kind in "SU":
        return found.astype(object)
    return found.astype(np.int8 if found.dtype.kind == "b" else found.dtype.newbyteorder("="), copy=False)
