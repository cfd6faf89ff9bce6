"""Files of arrays: numpy's .npy and .npz, and IDX, gzipped or not (the format of MNIST: yann.lecun.com/exdb/mnist).

An .npy file is read by seeking and never mapped: a mapped file that somebody cuts off kills the process that reads it. The others are
unpacked once, to their end, where checksums are compared. What was pickled into a file is never loaded.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import numpy as np

from pipelines.data.files import File
from pipelines.data.readers.parse_cache import LONGEST_ROW_BYTES, BadRows, Parsed
from pipelines.data.readers.planned import Plan, Planned, batch_rows, check_names, reading
from pipelines.data.source import even_starts
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS = "biufmMSU"
_WHOLE_BYTES = 1 << 30


@dataclass(frozen=True)
class _Header:
    """The head of an array: shape, type, whether its first axis varies fastest (Fortran's order), and its own length in bytes."""

    place: str
    shape: tuple[int, ...]
    kind: np.dtype
    fortran: bool
    length: int

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.kind.itemsize

    @property
    def scattered(self) -> bool:
        """A row does not lie in one piece."""
        return self.fortran and prod(self.shape[1:]) > 1

    def next_rows(self, opened: Any, low: int, high: int) -> np.ndarray:
        """Rows [low, high), at the first of which `opened` is. Raises DataError if it ends before."""
        content = opened.read((high - low) * self.row_bytes)
        self.check_end(low + len(content) // self.row_bytes, high)
        return np.frombuffer(content, self.kind).reshape(high - low, *self.shape[1:], order="F" if self.scattered else "C")

    def gathered_rows(self, opened: Any, low: int, high: int) -> np.ndarray:
        """Rows [low, high) of an array whose rows are scattered: a piece of each of its columns."""
        pieces = np.empty((prod(self.shape[1:]), high - low), self.kind)
        for number, piece in enumerate(pieces):
            opened.seek(self.length + (number * self.rows + low) * self.kind.itemsize)
            content = opened.read(piece.nbytes)
            self.check_end(low + len(content) // self.kind.itemsize, high)
            piece[:] = np.frombuffer(content, self.kind)
        return pieces.T.reshape(high - low, *self.shape[1:], order="F")

    def check_size(self, size: int) -> None:
        content = size - self.length
        self.check_end(content // self.row_bytes, self.rows)
        self.check_nothing_follows(content > self.rows * self.row_bytes)

    def check_end(self, rows: int, promised: int) -> None:
        if rows < promised:
            raise DataError(f"{self.place}: ends in row {rows:,}, but its header promises {self.rows:,}")

    def check_nothing_follows(self, more: bool) -> None:
        if more:
            raise DataError(f"{self.place}: goes on after the {self.rows:,} rows that its header promises")


class Npy(Planned):
    """An .npy file: one column, named as the file; read from any row."""

    def starts(self) -> Sequence[int]:
        return even_starts(self.rows())

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        with reading(self.file, ".npy"), self.file.open() as opened:
            header = _numpy_header(opened, self.file.name)
            opened.seek(header.length + start * header.row_bytes)
            for low in range(start, stop, step := batch_rows(header.row_bytes)):
                rows = (header.gathered_rows if header.scattered else header.next_rows)(opened, low, min(low + step, stop))
                yield {name: _plain(rows) for name in columns}

    @cached_property
    def _plan(self) -> Plan:
        version = self._version()
        with reading(self.file, ".npy"), self.file.open() as opened:
            header = _numpy_header(opened, self.file.name)
            header.check_size(opened.size())
        return Plan(version, (Path(self.file.name).stem,), (0, header.rows))


class Npz(Parsed):
    """An .npz file: its arrays are the columns, all with as many rows. One in Fortran's order is held as a whole while it is parsed."""

    parser = "npz 1"

    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        with reading(self.file, ".npz"), self.file.open() as file, zipfile.ZipFile(cast(IO[bytes], file)) as archive, ExitStack() as stack:
            members = archive.infolist()
            if odd := [member.filename for member in members if not member.filename.endswith(".npy")]:
                raise DataError(f"{self.file.name}: holds {odd[0]!r}, which is no .npy array")
            names = [member.filename.removesuffix(".npy") for member in members]
            check_names(self.file, names)
            arrays = {}
            for name, member in zip(names, members, strict=True):
                opened = stack.enter_context(archive.open(member))
                arrays[name] = _Array(self.file, ".npz", opened, _numpy_header(opened, f"{self.file.name}: {name}"))
            rows = {name: array.header.rows for name, array in arrays.items()}
            if odd := [name for name in names if rows[name] != rows[names[0]]]:
                counts = f"{rows[names[0]]:,} in {names[0]}, {rows[odd[0]]:,} in {odd[0]}"
                raise DataError(f"{self.file.name}: its arrays differ in rows: {counts}")
            yield from _side_by_side(arrays)


@dataclass(frozen=True)
class Idx(Parsed):
    """A pair of IDX files: columns `image` and `label`; or images alone."""

    parser = "idx 1"
    labels: File | None = None

    def _version(self) -> str:
        return self.file.version() + (f", {self.labels.version()}" if self.labels else "")

    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        files = {"image": self.file} | ({"label": self.labels} if self.labels else {})
        with ExitStack() as stack:
            arrays = {name: _idx(file, 3 if name == "image" else 1, stack) for name, file in files.items()}
            images, labels = arrays["image"].header, arrays.get("label", arrays["image"]).header
            if images.rows != labels.rows:
                raise DataError(f"{images.place} has {images.rows:,} images, but {labels.place} has {labels.rows:,} labels")
            yield from _side_by_side(arrays)


def labels_beside(images: File) -> File:
    """The file of labels that lies beside the file `images`. Raises DataError."""
    name = images.name.rpartition("/")[2].removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [_sibling(images, name), _sibling(images, f"{name}.gz")]
    for file in candidates:
        if file != images and file.exists():
            return file
    expected = " or ".join(file.name for file in candidates)
    raise DataError(f"{images.name}: its labels are not beside it; expected {expected} in the same folder")


def _sibling(file: File, name: str) -> File:
    shown = f"{file.name.rpartition('/')[0]}/{name}".lstrip("/")
    parts = urlsplit(file.uri) if "://" in file.uri else None  # options behind a question mark hold for the sibling as well
    path = f"{(parts.path if parts else file.uri).rpartition('/')[0]}/{name}"
    return File(parts._replace(path=path).geturl() if parts else path, shown)


@dataclass
class _Array:
    """An array that is read once, from its first row to its last."""

    file: File
    format: str
    opened: IO[bytes]
    header: _Header
    whole: np.ndarray | None = None

    def next_rows(self, low: int, high: int) -> np.ndarray:
        """Rows [low, high); behind the last nothing may follow, and reading on is what compares a checksum."""
        header = self.header
        with reading(self.file, self.format):  # several files are open at once: what goes wrong must name its own
            if header.scattered and self.whole is None:
                if header.row_bytes * header.rows > _WHOLE_BYTES:
                    raise DataError(
                        f"{header.place}: lies in Fortran's order and is too large for it; save it with numpy.ascontiguousarray"
                    )
                self.whole = header.next_rows(self.opened, 0, header.rows)
            if header.row_bytes > LONGEST_ROW_BYTES:
                raise DataError(f"{header.place}: has rows of more than {LONGEST_ROW_BYTES:,} bytes")
            rows = header.next_rows(self.opened, low, high) if self.whole is None else self.whole[low:high]
            header.check_nothing_follows(high == header.rows and len(self.opened.read(1)) > 0)
        return rows


def _side_by_side(arrays: Mapping[str, _Array]) -> Iterator[pa.RecordBatch]:
    """Arrays of as many rows as the columns of a table; at least one batch."""
    import pyarrow as pa

    headers = [array.header for array in arrays.values()]
    step = batch_rows(sum(header.row_bytes for header in headers))
    for low in range(0, max(headers[0].rows, 1), step):
        high = min(low + step, headers[0].rows)
        yield pa.record_batch({name: _to_arrow(_plain(array.next_rows(low, high))) for name, array in arrays.items()})


def _to_arrow(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    if not len(values):
        return _to_arrow(np.zeros((1, *values.shape[1:]), values.dtype))[:0]
    if values.dtype == object:
        return pa.array(values.tolist())
    if values.dtype.kind in "mM" and np.datetime_data(values.dtype)[0] not in ("s", "ms", "us", "ns", *"D"[: values.dtype.kind == "M"]):
        values = values.astype(f"{values.dtype.kind}8[s]")  # Arrow knows no hours, nor days of a duration
    return pa.array(values) if values.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def _plain(values: np.ndarray) -> np.ndarray:
    """As a task is given it: strings and bytes as objects, numbers in this machine's byte order, booleans as 0 and 1."""
    if values.dtype.kind in "SU":
        return values.astype(object)
    return values.astype(np.int8 if values.dtype.kind == "b" else values.dtype.newbyteorder("="), copy=False)


def _numpy_header(opened: Any, place: str) -> _Header:
    """Raises DataError for arrays that cannot be rows, and whatever numpy raises for damaged ones."""
    version = np.lib.format.read_magic(opened)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{place}: its format {version[0]}.{version[1]} has named fields; save each as an array of its own")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(opened)
    if kind.hasobject:
        raise DataError(f"{place}: holds Python objects, which are pickled and so never loaded; save numbers or strings")
    if kind.kind not in _KINDS or kind.itemsize == 0:
        raise DataError(f"{place}: holds {kind}; save numbers or strings, each field as an array of its own")
    return _Header(place, _checked_shape(place, shape), kind, fortran, opened.tell())


def _idx(file: File, dimensions: int, stack: ExitStack) -> _Array:
    """The file, open until `stack` is left. Unpacked by Python's gzip, not Arrow's: it compares the checksum, and names the problem."""
    with reading(file, "IDX"):
        opened: Any = stack.enter_context(io.BufferedReader(cast(io.RawIOBase, stack.enter_context(file.open()))))
        if file.packed:
            opened = stack.enter_context(gzip.GzipFile(fileobj=opened))
        # two zero bytes, the type (8: unsigned byte), the number of dimensions, then each as a big-endian int32
        magic, expected = opened.read(4), bytes([0, 0, 8, dimensions])
        sizes = opened.read(4 * dimensions)
    if magic != expected or len(sizes) < 4 * dimensions:
        begins = f"begins with {magic.hex()}, not {expected.hex()}"
        raise DataError(f"{file.name}: not an IDX file of bytes in {dimensions} dimensions: {begins}")
    shape = _checked_shape(file.name, tuple(np.frombuffer(sizes, ">i4").tolist()))
    header = _Header(file.name, shape, np.dtype(np.uint8), False, 4 + 4 * dimensions)
    if not file.packed:
        header.check_size(file.size())
    return _Array(file, "IDX", opened, header)


def _checked_shape(place: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or min(shape) < 0 or 0 in shape[1:]:
        raise DataError(f"{place}: its shape {shape} has no rows")
    return shape
