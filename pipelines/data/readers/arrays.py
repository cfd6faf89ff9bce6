"""Files of arrays: numpy's .npy and .npz, and IDX, gzipped or not (the format of MNIST: yann.lecun.com/exdb/mnist).

An .npy file is read by seeking and never memory-mapped: a mapped file that is truncated meanwhile kills the process (SIGBUS). The others
are decompressed once, to the end, where checksums are compared. Pickled objects are never loaded.
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

import numpy as np

from pipelines.data.files import File, with_path
from pipelines.data.readers.parse_cache import LONGEST_ROW_BYTES, BadRows, Parsed
from pipelines.data.readers.planned import Plan, Planned, batch_rows, check_names, reading
from pipelines.data.source import even_starts
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS = "biufmMSU"
_WHOLE_BYTES = 1 << 30


@dataclass(frozen=True)
class _Array:
    """An array in an open file. Its first row begins at byte `begin`. `fortran`: the first axis varies fastest, so a row is not contiguous.

    `place` names the array in errors: the file, and in an .npz file its member too.
    """

    file: File
    format: str
    place: str
    opened: Any
    shape: tuple[int, ...]
    kind: np.dtype
    fortran: bool
    begin: int

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.kind.itemsize

    def next_rows(self, low: int, high: int) -> np.ndarray:
        """Rows [low, high), read from the current position, which is row `low`. Raises DataError if the file ends before `high`."""
        content = self.opened.read((high - low) * self.row_bytes)
        self._check_end(low + len(content) // self.row_bytes, high)
        return np.frombuffer(content, self.kind).reshape(high - low, *self.shape[1:], order="F" if self.fortran else "C")

    def gathered_rows(self, low: int, high: int) -> np.ndarray:
        """Rows [low, high) of an array in Fortran order, sought and read column by column."""
        pieces = np.empty((prod(self.shape[1:]), high - low), self.kind)
        for number, piece in enumerate(pieces):
            self.opened.seek(self.begin + (number * self.rows + low) * self.kind.itemsize)
            content = self.opened.read(piece.nbytes)
            self._check_end(low + len(content) // self.kind.itemsize, high)
            piece[:] = np.frombuffer(content, self.kind)
        return pieces.T.reshape(high - low, *self.shape[1:], order="F")

    def batches(self, step: int) -> Iterator[np.ndarray]:
        """All rows, `step` at a time. Reads past the last row: nothing may follow it, and only at the end are checksums compared."""
        if self.row_bytes > LONGEST_ROW_BYTES:
            raise DataError(f"{self.place}: has rows of more than {LONGEST_ROW_BYTES:,} bytes")
        if self.fortran and self.row_bytes * self.rows > _WHOLE_BYTES:
            raise DataError(f"{self.place}: is in Fortran order and has more than 1 GiB; save it in C order (numpy.ascontiguousarray)")
        with reading(self.file, self.format):  # two files may be open: an error names its own
            whole = self.next_rows(0, self.rows) if self.fortran else None
            for low in range(0, max(self.rows, 1), step):
                high = min(low + step, self.rows)
                rows = self.next_rows(low, high) if whole is None else whole[low:high]
                if high == self.rows and self.opened.read(1):
                    raise self._too_long()
                yield rows

    def check_size(self, size: int) -> None:
        """Raises DataError unless a file of that many bytes holds all rows and nothing else."""
        self._check_end((size - self.begin) // self.row_bytes, self.rows)
        if size - self.begin > self.rows * self.row_bytes:
            raise self._too_long()

    def _check_end(self, rows: int, promised: int) -> None:
        if rows < promised:
            raise DataError(f"{self.place}: ends in row {rows:,}, but its header promises {self.rows:,}")

    def _too_long(self) -> DataError:
        return DataError(f"{self.place}: goes on after the {self.rows:,} rows that its header promises")


class Npy(Planned):
    """An .npy file: one column, named after the file; reading can start at any row."""

    def starts(self) -> Sequence[int]:
        return even_starts(self.rows())

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        with reading(self.file, ".npy"), self.file.open() as opened:
            array = _numpy_array(self.file, ".npy", self.file.name, opened)
            opened.seek(array.begin + start * array.row_bytes)
            for low in range(start, stop, step := batch_rows(array.row_bytes)):
                rows = (array.gathered_rows if array.fortran else array.next_rows)(low, min(low + step, stop))
                yield {name: _plain(rows) for name in columns}

    @cached_property
    def _plan(self) -> Plan:
        version = self._version()
        with reading(self.file, ".npy"), self.file.open() as opened:
            array = _numpy_array(self.file, ".npy", self.file.name, opened)
            array.check_size(opened.size())
        return Plan(version, (Path(self.file.name).stem,), (0, array.rows))


class Npz(Parsed):
    """An .npz file: each array is a column, all of equal length. An array in Fortran order is held in memory while it is parsed."""

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
                arrays[name] = _numpy_array(self.file, ".npz", f"{self.file.name}: {name}", opened)
            rows = {name: array.rows for name, array in arrays.items()}
            if odd := [name for name in names if rows[name] != rows[names[0]]]:
                counts = f"{rows[names[0]]:,} in {names[0]}, {rows[odd[0]]:,} in {odd[0]}"
                raise DataError(f"{self.file.name}: its arrays differ in rows: {counts}")
            yield from _side_by_side(arrays)


@dataclass(frozen=True)
class Idx(Parsed):
    """IDX images with a second file of labels: columns `image` and `label`; without `labels` only `image`."""

    parser = "idx 1"
    labels: File | None = None

    def _version(self) -> str:
        return self.file.version() + (f", {self.labels.version()}" if self.labels else "")

    def _parse(self, bad: BadRows) -> Iterator[pa.RecordBatch]:
        files = {"image": self.file} | ({"label": self.labels} if self.labels else {})
        with ExitStack() as stack:
            arrays = {name: _idx_array(file, 3 if name == "image" else 1, stack) for name, file in files.items()}
            images, labels = arrays["image"], arrays.get("label", arrays["image"])
            if images.rows != labels.rows:
                raise DataError(f"{images.place} has {images.rows:,} images, but {labels.place} has {labels.rows:,} labels")
            yield from _side_by_side(arrays)


def labels_beside(images: File) -> File:
    """The labels file of an images file: the same name with `images` and `idx3` replaced, in the same folder. Raises DataError."""
    name = images.name.rpartition("/")[2].removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [_sibling(images, name), _sibling(images, f"{name}.gz")]
    for file in candidates:
        if file != images and file.exists():
            return file
    expected = " or ".join(file.name for file in candidates)
    raise DataError(f"{images.name}: its labels are not beside it; expected {expected} in the same folder")


def _sibling(file: File, name: str) -> File:
    shown = f"{file.name.rpartition('/')[0]}/{name}".lstrip("/")
    return File(with_path(file.uri, lambda path: f"{path.rpartition('/')[0]}/{name}"), shown)


def _side_by_side(arrays: Mapping[str, _Array]) -> Iterator[pa.RecordBatch]:
    """Batches of a table with these columns, which have equally many rows; at least one batch."""
    import pyarrow as pa

    step = batch_rows(sum(array.row_bytes for array in arrays.values()))
    for batches in zip(*(array.batches(step) for array in arrays.values()), strict=True):
        yield pa.record_batch({name: _to_arrow(_plain(rows)) for name, rows in zip(arrays, batches, strict=True)})


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
    """Strings and bytes as objects, numbers in native byte order, booleans as int8."""
    if values.dtype.kind in "SU":
        return values.astype(object)
    return values.astype(np.int8 if values.dtype.kind == "b" else values.dtype.newbyteorder("="), copy=False)


def _numpy_array(file: File, format: str, place: str, opened: Any) -> _Array:
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
    shape = _checked_shape(place, shape)
    return _Array(file, format, place, opened, shape, kind, fortran and prod(shape[1:]) > 1, opened.tell())


def _idx_array(file: File, dimensions: int, stack: ExitStack) -> _Array:
    """The array of an IDX file, open until `stack` is left. Python's gzip, not Arrow's: it compares the checksum and names the problem."""
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
    array = _Array(file, "IDX", file.name, opened, shape, np.dtype(np.uint8), False, 4 + 4 * dimensions)
    if not file.packed:
        array.check_size(file.size())
    return array


def _checked_shape(place: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or min(shape) < 0 or 0 in shape[1:]:
        raise DataError(f"{place}: its shape {shape} has no rows")
    return shape
