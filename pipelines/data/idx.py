"""IDX files, gzipped or not (the format of MNIST: yann.lecun.com/exdb/mnist): a file of images and, beside it, one of labels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np

from pipelines.integrity import sha256
from workloads.base import Arrays, DataError


@dataclass(frozen=True)
class Idx:
    """A pair of IDX files: columns `image` and `label`."""

    images: Path
    labels: Path

    @classmethod
    def beside(cls, images: Path) -> Idx:
        """The pair that `images` and the labels lying beside it make. Raises DataError."""
        return cls(images, _labels_beside(images))

    @property
    def label(self) -> str:
        return self.images.name.split(".")[0]

    def identity(self) -> dict[str, str]:
        return {path.name: sha256(path) for path in (self.images, self.labels)}

    def columns(self) -> tuple[str, ...]:
        return ("image", "label")

    def rows(self) -> int:
        images, labels = _idx_shape(self.images, 3), _idx_shape(self.labels, 1)
        if images[0] != labels[0]:
            raise DataError(f"{self.images.name} has {images[0]:,} images, but {self.labels.name} has {labels[0]:,} labels")
        return images[0]

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Arrays:
        files = {"image": (self.images, 3), "label": (self.labels, 1)}
        return {name: _read_idx(*files[name], start, stop) for name in columns}


def _labels_beside(images: Path) -> Path:
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [images.with_name(name), images.with_name(f"{name}.gz")]
    for path in candidates:
        if path != images and path.is_file():
            return path
    raise DataError(
        f"{images.name}: its labels are not beside it; expected {candidates[0].name} or {candidates[1].name} in the same folder"
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name}: a truncated or damaged gzip file ({error})") from error


def _header(file: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    # two zero bytes, the type (8: unsigned byte), the number of dimensions, then each as a big-endian int32
    magic, expected = file.read(4), bytes([0, 0, 8, dimensions])
    sizes = file.read(4 * dimensions)
    if magic != expected or len(sizes) < 4 * dimensions:
        raise DataError(
            f"{path.name}: not an IDX file of bytes in {dimensions} dimensions: begins with {magic.hex()}, not {expected.hex()}"
        )
    shape = tuple(np.frombuffer(sizes, ">i4").tolist())
    if min(shape) < 0 or 0 in shape[1:]:
        raise DataError(f"{path.name}: its header states impossible sizes {shape}")
    return shape


def _idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The sizes in a file's header, once the file is known to be as long as they say: nothing is allocated on their word."""
    with _opened(path) as file:
        shape = _header(file, path, dimensions)
        promised = 4 + 4 * dimensions + prod(shape)
        there = _gzip_length(path) if path.suffix == ".gz" else path.stat().st_size
        if there != promised % (1 << 32 if path.suffix == ".gz" else 1 << 63):
            there = 4 + 4 * dimensions + _count(file)  # damaged; or several gzip members, of which the trailer tells the last
        if there < promised:
            row = (there - 4 - 4 * dimensions) // prod(shape[1:])
            raise DataError(f"{path.name}: ends in row {row:,}, but its header promises {shape[0]:,}")
        if there > promised:
            raise DataError(f"{path.name}: goes on after the {shape[0]:,} rows that its header promises")
    return shape


def _gzip_length(path: Path) -> int:
    """The uncompressed length modulo 2^32, as a gzip file's last four bytes tell it (RFC 1952)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return int.from_bytes(file.read(4), "little")


def _count(file: IO[bytes]) -> int:
    """How many bytes are left."""
    return sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))


def _read_idx(path: Path, dimensions: int, start: int, stop: int) -> np.ndarray:
    with _opened(path) as file:
        shape = _header(file, path, dimensions)
        row_bytes = prod(shape[1:])
        file.seek(start * row_bytes, 1)
        content = file.read((stop - start) * row_bytes)
        if stop == shape[0] and file.read(1):  # reading to the end is also what makes gzip compare its checksum
            raise DataError(f"{path.name}: goes on after the {shape[0]:,} rows that its header promises")
    if len(content) < (stop - start) * row_bytes:
        raise DataError(f"{path.name}: ends in row {start + len(content) // max(row_bytes, 1):,}, but its header promises {shape[0]:,}")
    return np.frombuffer(content, np.uint8).reshape(stop - start, *shape[1:])
