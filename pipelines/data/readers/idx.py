"""IDX files, gzipped or not (the format of MNIST: yann.lecun.com/exdb/mnist): a file of images and, beside it, one of labels."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import IO, cast
from urllib.parse import urlsplit

import numpy as np

from pipelines.data.files import File
from pipelines.data.source import BATCH_ROWS, Skipped, even_starts
from workloads.base import Arrays, DataError

_BATCH_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 20
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Idx:
    """A pair of IDX files: columns `image` and `label`; or images alone. A plain file is entered at any row, a gzipped one from its
    beginning."""

    images: File
    labels: File | None = None

    def columns(self) -> tuple[str, ...]:
        return ("image", "label") if self.labels else ("image",)

    def rows(self) -> int:
        return self._shapes[0][0]

    def starts(self) -> Sequence[int]:
        # a gzipped file that several processes enter is unpacked by each of them up to its rows: one does it all sooner
        return (0,) if any(_packed(file) for file in (self.images, self.labels) if file) else even_starts(self.rows())

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        files = {"image": (self.images, self._shapes[0])} | ({"label": (self.labels, self._shapes[1])} if self.labels else {})
        step = min(BATCH_ROWS, max(1, _BATCH_BYTES // prod(self._shapes[0][1:])))
        with ExitStack() as opened:
            entered = {name: opened.enter_context(_entered(*files[name], start)) for name in columns}
            for low in range(start, stop, step):
                high = min(low + step, stop)
                yield {name: _next_rows(file, *files[name], low, high) for name, file in entered.items()}

    def skipped(self) -> Skipped:
        return Skipped()

    def place(self, row: int) -> str:
        return f"{self.images.name}, row {row:,}"

    @cached_property
    def _shapes(self) -> tuple[_Shape, _Shape]:
        images = _shape(self.images, 3)
        labels = _shape(self.labels, 1) if self.labels else images[:1]
        if self.labels and images[0] != labels[0]:
            raise DataError(f"{self.images.name} has {images[0]:,} images, but {self.labels.name} has {labels[0]:,} labels")
        return images, labels


def beside(images: File) -> Idx:
    """The pair that `images` and the labels lying beside it make. Raises DataError."""
    name = images.name.rpartition("/")[2].removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [_sibling(images, name), _sibling(images, f"{name}.gz")]
    for file in candidates:
        if file != images and _is_there(file):
            return Idx(images, file)
    expected = " or ".join(file.name for file in candidates)
    raise DataError(f"{images.name}: its labels are not beside it; expected {expected} in the same folder")


def _sibling(file: File, name: str) -> File:
    shown = f"{file.name.rpartition('/')[0]}/{name}".lstrip("/")
    if "://" not in file.uri:
        return File(f"{file.uri.rpartition('/')[0]}/{name}", shown)
    parts = urlsplit(file.uri)
    return File(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}").geturl(), shown)


def _is_there(file: File) -> bool:
    try:
        return file.size() >= 0
    except DataError:
        return False


def _packed(file: File) -> bool:
    return file.name.lower().endswith(".gz")


@contextmanager
def _told(file: File) -> Iterator[None]:
    """What goes wrong within, told with the file's name."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file.name}: a truncated or damaged gzip file ({error})") from error
    except OSError as error:
        message = str(error).partition("\n")[0]
        raise DataError(f"{file.name}: cannot be read: {message}") from error


@contextmanager
def _opened(file: File) -> Iterator[IO[bytes]]:
    """The unpacked content. Python's gzip and not Arrow's: it compares the checksum, and says what is wrong."""
    with _told(file), file.open() as raw, io.BufferedReader(cast(io.RawIOBase, raw), _BLOCK_BYTES) as plain:
        if _packed(file):
            with gzip.GzipFile(fileobj=plain) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield plain


@contextmanager
def _entered(file: File, shape: _Shape, row: int) -> Iterator[IO[bytes]]:
    """The file at a row, if it is still the one whose header was read."""
    with _opened(file) as opened:
        if (found := _header(opened, file, len(shape))) != shape:
            raise DataError(f"{file.name}: has changed since it was first read: its header states sizes {found}, not {shape}")
        opened.seek(row * prod(shape[1:]), io.SEEK_CUR)
        yield opened


def _header(opened: IO[bytes], file: File, dimensions: int) -> _Shape:
    # two zero bytes, the type (8: unsigned byte), the number of dimensions, then each as a big-endian int32
    magic, expected = opened.read(4), bytes([0, 0, 8, dimensions])
    sizes = opened.read(4 * dimensions)
    if magic != expected or len(sizes) < 4 * dimensions:
        raise DataError(
            f"{file.name}: not an IDX file of bytes in {dimensions} dimensions: begins with {magic.hex()}, not {expected.hex()}"
        )
    shape = tuple(np.frombuffer(sizes, ">i4").tolist())
    if min(shape) < 0 or 0 in shape[1:]:
        raise DataError(f"{file.name}: its header states impossible sizes {shape}")
    return shape


def _shape(file: File, dimensions: int) -> _Shape:
    """The sizes in a file's header, once the file is known to be as long as they say: nothing is allocated on their word."""
    with _opened(file) as opened:
        shape = _header(opened, file, dimensions)
        promised = 4 + 4 * dimensions + prod(shape)
        there = _gzip_length(file) if _packed(file) else file.size()
        if there != promised:
            there = 4 + 4 * dimensions + _count(opened)  # damaged; or several gzip members, of which the trailer tells the last; or >4 GiB
        _check_length(file, shape, there - 4 - 4 * dimensions)
    return shape


def _check_length(file: File, shape: _Shape, there: int) -> None:
    if there < prod(shape):
        raise DataError(f"{file.name}: ends in row {there // prod(shape[1:]):,}, but its header promises {shape[0]:,}")
    if there > prod(shape):
        raise DataError(f"{file.name}: goes on after the {shape[0]:,} rows that its header promises")


def _gzip_length(file: File) -> int:
    """The uncompressed length modulo 2^32, as a gzip file's last four bytes tell it (RFC 1952)."""
    with file.open() as raw:
        raw.seek(max(0, raw.size() - 4))
        return int.from_bytes(raw.read(4), "little")


def _count(opened: IO[bytes]) -> int:
    """How many bytes are left."""
    return sum(len(block) for block in iter(lambda: opened.read(_BLOCK_BYTES), b""))


def _next_rows(opened: IO[bytes], file: File, shape: _Shape, start: int, stop: int) -> np.ndarray:
    row_bytes = prod(shape[1:])
    with _told(file):  # several files are open at once: what goes wrong must not be told of another
        content = opened.read((stop - start) * row_bytes)
        after = opened.read(1) if stop == shape[0] else b""  # reading to the end is also what makes gzip compare its checksum
    if len(content) < (stop - start) * row_bytes or after:
        _check_length(file, shape, start * row_bytes + len(content) + len(after))
    return np.frombuffer(content, np.uint8).reshape(stop - start, *shape[1:])
