"""The common part of file readers: a plan made once, errors that name the file, several files as one source, Arrow columns as numpy arrays.

A reader raises DataError and no other exception, and never gives rows of two versions of a file.
"""

from __future__ import annotations

import json
import lzma
import struct
import time
import tokenize
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data.files import File, first_line
from pipelines.data.source import BATCH_ROWS, Concatenated, Reader
from pipelines.sealed import digest, sha256, stamp, write_atomically
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa

# what pyarrow, numpy, gzip and zipfile raise for bytes that they did not expect: they promise no kind
_DAMAGE = (
    *(ValueError, TypeError, ArithmeticError, LookupError, OSError, EOFError, MemoryError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
_BATCH_BYTES = 64 << 20
_LISTED = 20
_SETTLED_NANOSECONDS = 2_000_000_000  # a file changed later than this may change again without another time of change


@dataclass(frozen=True)
class Plan:
    """Facts of a file that are known before its rows are read; `edges`: the row at which each part begins, and the row behind the last."""

    version: str
    names: tuple[str, ...]
    edges: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.edges[-1]

    @property
    def starts(self) -> Sequence[int]:
        return sorted({0, *self.edges} - {self.rows}) or (0,)


@dataclass(frozen=True)
class Planned(Reader):
    """A reader of one file. Its plan is made once and travels with it, so that no process reads what has changed since."""

    file: File

    def columns(self) -> tuple[str, ...]:
        return self._plan.names

    def rows(self) -> int:
        return self._plan.rows

    def starts(self) -> Sequence[int]:
        return self._plan.starts

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        """Each batch is given once the file proved to be still the one planned; a file elsewhere is asked at the start and the end."""
        plan, name = self._plan, self.file.name
        if missing := [column for column in columns if column not in plan.names]:
            raise DataError(f"{name}: there is no column {missing[0]!r}; columns: {', '.join(plan.names)}")
        if stop > plan.rows:
            raise DataError(f"{name}: has {plan.rows:,} rows, but row {stop - 1:,} was asked for: has it changed since it was counted?")
        self._check_version(plan.version)
        for batch in self._batches(start, stop, columns) if start < stop else ():
            if self.file.local is not None:
                self._check_version(plan.version)
            yield batch
        if self.file.local is None:
            self._check_version(plan.version)

    def place(self, row: int) -> str:
        return f"{self.file.name}, row {row:,}"

    @property
    @abstractmethod
    def _plan(self) -> Plan:
        """The file's plan. Raises DataError."""

    @abstractmethod
    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        """Rows [start, stop), which exist and are not empty, of columns that exist."""

    def _version(self) -> str:
        return self.file.version()

    def _check_version(self, version: str) -> None:
        if self._version() != version:
            raise DataError(f"{self.file.name}: has changed since its rows were counted")


@contextmanager
def reading(file: File, kind: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a DataError that names the file, and the `kind` of file it is taken for."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        if isinstance(error, EOFError) and file.packed:
            raise DataError(f"{file.name}: a truncated or damaged gzip file") from error
        raise DataError(f"{file.name}: cannot be read as {kind}: {first_line(error)}") from error


def check_names(file: File, names: Sequence[str]) -> None:
    """Raises DataError if there are none, or one of them twice."""
    if not names:
        raise DataError(f"{file.name}: has no columns")
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise DataError(f"{file.name}: has the column {twice[0]!r} more than once")


def batch_rows(row_bytes: float) -> int:
    """The number of rows of that size that may be in memory at once."""
    return max(1, min(BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))


# ---- several files


@dataclass(frozen=True)
class Files(Concatenated):
    """The rows of several readers; `files` are what these read, `scratch` a folder for what is remembered of them."""

    label: str
    readers: tuple[Reader, ...]
    files: tuple[File, ...]
    scratch: Path

    def identity(self) -> dict[str, str]:
        return identity(self.files, self.scratch)

    def columns(self) -> tuple[str, ...]:
        first = self.readers[0].columns()
        for reader, file in zip(self.readers[1:], self.files[1:], strict=False):
            if odd := set(reader.columns()) ^ set(first):
                raise DataError(f"{file.name}: its columns are not those of {self.files[0].name}: {min(odd)!r} is in one of them only")
        return first


def identity(files: Sequence[File], scratch: Path) -> dict[str, str]:
    """File name -> sha256 or entity tag of the content; many files under one hash of them all. Raises DataError.

    The sha256 of a local file is remembered in `scratch` by its path, size, time of change and inode.
    """
    note, known = scratch / ".hashes.json", dict[str, list[Any]]()
    with suppress(OSError, ValueError, AttributeError):  # not there, or damaged: it is made anew
        known = {path: entry for path, entry in json.loads(note.read_text()).items() if isinstance(entry, list) and len(entry) == 4}
    remembered = dict(known)
    contents = {file.name: file.version() if file.local is None else _sha256(file, file.local, known) for file in files}
    if known != remembered:
        scratch.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps(known))
    return contents if len(contents) <= _LISTED else {f"{len(contents):,} files": digest(contents)}


def _sha256(file: File, path: Path, known: dict[str, list[Any]]) -> str:
    """The hash that `known` has of the file as it is now; else it is taken, and noted there."""
    try:
        seen = list(stamp(path))
        if known.get(str(path), [])[:3] == seen:
            return known[str(path)][3]
        content = sha256(path)
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read: {error.strerror or error}") from None
    if time.time_ns() - seen[1] > _SETTLED_NANOSECONDS:
        known[str(path)] = [*seen, content]
    return content


# ---- columns


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(N, …) for lists of one length at every level, else (N,): numbers with NaN, strings, bytes or lists with None, where one is missing.

    A picture as `datasets` stores it (a struct of bytes and path) is its bytes, or its path where there are none. Text that is not
    UTF-8 is a DataError in its row. Raises pyarrow's exceptions for a type that has no such form, such as a union.
    """
    import pyarrow as pa
    import pyarrow.compute

    kind, types = column.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.FixedShapeTensorType) and len(column) and not column.null_count:
            return column.combine_chunks().to_numpy_ndarray()
        return to_numpy(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if types.is_dictionary(kind):  # not cast(): it knows no dictionaries of lists
        return to_numpy(pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type))
    if types.is_boolean(kind) or types.is_decimal(kind):
        return column.cast(pa.int8() if types.is_boolean(kind) else pa.float64()).to_numpy()
    if types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        content, path = (to_numpy(pa.compute.struct_field(column, name)) for name in ("bytes", "path"))
        return np.where(content == None, path, content)  # noqa: E711
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(is_one(kind) for is_one in lists):
        return _lists(column)
    if types.is_struct(kind):  # not to_numpy(): its integers are floats where another row has none
        return np.fromiter(column.to_pylist(), object)
    return _text(column) if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) else column.to_numpy()


def _lists(column: pa.ChunkedArray) -> np.ndarray:
    """Stacked where every list has the same length and holds numbers; else objects."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.unique(pc.list_value_length(column))
    if not column.null_count and len(lengths) == 1:
        inside = to_numpy(pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type))
        if inside.dtype != object:
            return inside.reshape(len(column), lengths[0].as_py(), *inside.shape[1:])
    return np.fromiter(column.to_pylist(), object)


def _text(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa

    try:
        return column.to_numpy()
    except (pa.ArrowException, UnicodeDecodeError):  # the one or the other, as pyarrow's version has it
        return np.fromiter(map(_decoded, column.cast(pa.large_binary()).to_pylist()), object)


def _decoded(content: bytes | None) -> str | DataError | None:
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        return DataError(f"text that is not UTF-8 at byte {error.start:,}")
