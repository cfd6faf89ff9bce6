"""A table that names files: a source whose paths are replaced by what the files hold."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from pipelines.data.files import File
from pipelines.data.readers.image_folder import AT_ONCE, contents
from pipelines.data.source import Skipped, Source
from workloads.base import Arrays, DataError

_THREADS = 8  # an object store is waited for, once a file


@dataclass(frozen=True)
class Opened:
    """`source`, but where one of `columns` holds a string, the bytes of the file that it names below `folder` (a path or URI).

    A path that leads out of `folder`, or to no file, is a DataError in its row: a table that somebody sent must not choose what else
    is read here. Bytes, arrays and missing values stay as they are.
    """

    source: Source
    paths: tuple[str, ...]
    folder: str

    @property
    def label(self) -> str:
        return self.source.label

    def identity(self) -> dict[str, str]:
        """The source's, and size and time of change (or entity tag) of all files that it names."""
        here = [name for name in self.paths if name in self.source.columns()]
        named = [name for name in here if self._names_files(name)]
        return self.source.identity() | {f"files of column {name}": self._files_identity(name) for name in named}

    def columns(self) -> tuple[str, ...]:
        return self.source.columns()

    def rows(self) -> int:
        return self.source.rows()

    def starts(self) -> Sequence[int]:
        return self.source.starts()

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        for raw in self.source.read(start, stop, columns):
            for part, opened in self.opened(raw, columns):
                yield {**part, **opened}

    def opened(self, raw: Arrays, columns: Sequence[str]) -> Iterator[tuple[Arrays, Arrays]]:
        """Rows of the table in batches, and beside them what the files hold that `columns` of them name."""
        named = [name for name in columns if name in self.paths and _has_text(raw[name])]
        if not named:
            yield raw, {}
            return
        for low in range(0, len(raw[named[0]]), AT_ONCE):
            part = {name: column[low : low + AT_ONCE] for name, column in raw.items()}
            yield part, {name: contents([self._file(value) for value in part[name]]) for name in named}

    def skipped(self) -> Skipped:
        return self.source.skipped()

    def place(self, row: int) -> str:
        return self.source.place(row)

    def _file(self, value: Any) -> Any:
        """The file that a string names; a DataError where it may name none; any other value as it is."""
        if not isinstance(value, str):
            return value
        path = posixpath.normpath(value)
        # unquote: what a server makes of %2e%2e is not ours to say
        if path == "." or "://" in value or any(_leads_out(form) for form in (path, unquote(path))):
            return DataError(f"{value[:200]!r} names no file below the table's folder: paths are relative to it")
        if "://" not in self.folder:
            return File(f"{self.folder.rstrip('/')}/{path}", value)
        if "?" in path or "#" in path:  # behind a question mark stand options, such as the server that is asked
            return DataError(f"{value[:200]!r}: a path on {urlsplit(self.folder).scheme}:// has neither ? nor #")
        parts = urlsplit(self.folder)
        return File(parts._replace(path=f"{parts.path.rstrip('/')}/{path}").geturl(), value)

    def _names_files(self, column: str) -> bool:
        """Whether the first rows hold a string: a column of pictures is not read through for its names."""
        first = next(iter(self.source.read(0, min(AT_ONCE, self.source.rows()), [column])), None)
        return first is not None and _has_text(first[column])

    def _files_identity(self, column: str) -> str:
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_THREADS) as threads:
            for raw in self.source.read(0, self.source.rows(), [column]):
                for version in threads.map(_version, [self._file(value) for value in raw[column]]):
                    digest.update(f"{version}\0".encode())
        return digest.hexdigest()


def _has_text(column: np.ndarray) -> bool:
    return column.dtype.kind == "U" or (column.dtype == object and any(isinstance(value, str) for value in column))


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "~")) or ".." in path.split("/")


def _version(file: Any) -> str:
    try:
        return file.version() if isinstance(file, File) else ""
    except (OSError, ValueError):  # DataError is one; the row says so when it is read
        return "missing"
