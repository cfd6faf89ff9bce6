"""A reader of one file that is planned once: DataError and no other exception, and never rows of two versions of the file."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.data.files import File, first_line
from pipelines.data.source import BATCH_ROWS, Skipped
from workloads.base import Arrays, DataError

# what pyarrow, numpy, gzip and zipfile raise for bytes that they did not expect: they promise no kind
_DAMAGE = (
    *(ValueError, TypeError, ArithmeticError, LookupError, OSError, EOFError, MemoryError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
_BATCH_BYTES = 64 << 20


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

    def check(self, file: File, stop: int, columns: Sequence[str]) -> None:
        """Raises DataError unless there are rows up to `stop` and all of `columns`."""
        for name in columns:
            if name not in self.names:
                raise DataError(f"{file.name}: there is no column {name!r}; columns: {', '.join(self.names)}")
        if stop > self.rows:
            raise DataError(
                f"{file.name}: has {self.rows:,} rows, but row {stop - 1:,} was asked for: has it changed since it was counted?"
            )


@dataclass(frozen=True)
class Planned(ABC):
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
        self._plan.check(self.file, stop, columns)
        self._check_version(self._plan.version)
        for batch in self._batches(start, stop, columns):
            if self.file.local is not None:
                self._check_version(self._plan.version)
            yield batch
        if self.file.local is None:
            self._check_version(self._plan.version)

    def skipped(self) -> Skipped:
        return Skipped()

    def place(self, row: int) -> str:
        return f"{self.file.name}, row {row:,}"

    @property
    @abstractmethod
    def _plan(self) -> Plan:
        """What is known of the file. Raises DataError."""

    @abstractmethod
    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        """Rows [start, stop), which exist, of columns that exist."""

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
        if isinstance(error, EOFError) and file.name.lower().endswith(".gz"):
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
