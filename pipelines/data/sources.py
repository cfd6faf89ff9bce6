"""Raw rows: what a source holds and how a range of them is read. Each source is frozen and picklable; any process can read any range."""

from __future__ import annotations

import gzip
import importlib.metadata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Protocol, cast

import numpy as np

from pipelines.integrity import sha256
from workloads.base import Arrays, DataError


class Source(Protocol):
    @property
    def label(self) -> str:
        """A short name, for run names and people."""
        ...

    def identity(self) -> dict[str, str]:
        """What the content is: file -> sha256, or package -> version. Equal identities mean equal rows."""
        ...

    def rows(self) -> int:
        """How many rows there are. Raises DataError."""
        ...

    def read(self, start: int, stop: int) -> Arrays:
        """Rows [start, stop) as columns. Raises DataError."""
        ...


def open_source(text: str) -> Source:
    """The source that `data.source` names: an embedded data set or an IDX image file. Raises DataError."""
    if text in _EMBEDDED:
        return _EMBEDDED[text]
    if "://" in text:
        raise DataError(f"{text}: only local files and embedded data ({', '.join(_EMBEDDED)}) are read yet")
    try:
        path = Path(text).expanduser().absolute()  # not resolve(): labels lie beside the name given, not beside what a link points to
        there = path.is_file()
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{text[:100]!r} can be no path: {error}") from None
    if not there:
        raise DataError(f"{text}: no such file, nor an embedded data set ({', '.join(_EMBEDDED)})")
    return Idx(path, _labels_beside(path))


@dataclass(frozen=True)
class Digits:
    """scikit-learn's embedded digits: 1,797 images of 8x8 pixels in 17 shades (Alpaydin & Kaynak, 1998)."""

    label: str = "digits"

    def identity(self) -> dict[str, str]:
        return {"scikit-learn digits": importlib.metadata.version("scikit-learn")}

    def rows(self) -> int:
        return 1797

    def read(self, start: int, stop: int) -> Arrays:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return {"image": digits.images[start:stop].astype(np.uint8), "label": digits.target[start:stop]}


@dataclass(frozen=True)
class Idx:
    """A pair of IDX files, images and labels, gzipped or not (the format of MNIST: yann.lecun.com/exdb/mnist)."""

    images: Path
    labels: Path

    @property
    def label(self) -> str:
        return self.images.name.split(".")[0]

    def identity(self) -> dict[str, str]:
        return {path.name: sha256(path) for path in (self.images, self.labels)}

    def rows(self) -> int:
        images, labels = _idx_shape(self.images, 3), _idx_shape(self.labels, 1)
        if images[0] != labels[0]:
            raise DataError(f"{self.images.name} has {images[0]:,} images, but {self.labels.name} has {labels[0]:,} labels")
        return images[0]

    def read(self, start: int, stop: int) -> Arrays:
        return {"image": _read_idx(self.images, 3, start, stop), "label": _read_idx(self.labels, 1, start, stop)}


_EMBEDDED: dict[str, Source] = {"digits": Digits()}


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
