"""Files that hold one value each: a folder of pictures with a folder for each class, and a table with columns of paths.

Nothing is decoded here. Files are read several at a time: an object store is waited for once a file.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from pipelines.data.files import File, first_line, with_path
from pipelines.data.source import Reader, Source, Wrapper
from workloads.base import Arrays, DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
FILES_AT_ONCE = 64
"""Files held in memory at a time: a photograph has megabytes, so that BATCH_ROWS of them would have gigabytes."""
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_THREADS = 8


def pictures_in(files: Sequence[File]) -> tuple[File, ...]:
    """Those of `files` whose ending is that of a picture, in name order."""
    return tuple(sorted((file for file in files if Path(file.name.lower()).suffix in ENDINGS), key=lambda file: file.name))


@dataclass(frozen=True)
class ImageFolder(Reader):
    """A row for each picture below a folder: columns `image` (the file's bytes) and `label` (the first folder of its name).

    Other files, and pictures that lie beside the class folders, are passed over, as torchvision's ImageFolder does.
    Without `labelled` all pictures count, wherever they lie: columns `image` and `path`, the name below the folder searched.
    """

    files: tuple[File, ...]
    labelled: bool = True

    def columns(self) -> tuple[str, ...]:
        return ("image", "label") if self.labelled else ("image", "path")

    def rows(self) -> int:
        return len(self._pictures)

    def starts(self) -> Sequence[int]:
        return range(0, self.rows(), 4 * FILES_AT_ONCE)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        for low in range(start, stop, FILES_AT_ONCE):
            files = self._pictures[low : min(low + FILES_AT_ONCE, stop)]
            yield {name: _column(name, files) for name in columns}

    def place(self, row: int) -> str:
        return self._pictures[row].name

    @cached_property
    def _pictures(self) -> tuple[File, ...]:
        pictures = pictures_in(self.files)
        if not self.labelled:
            return pictures
        inside = tuple(file for file in pictures if "/" in file.name)
        if not inside:
            problem = f"{pictures[0].name} lies in no folder" if pictures else "there is no picture"
            raise DataError(f"{problem}: a folder of pictures has a folder for each class, named by it")
        classes = {_label(file) for file in inside}
        if classes <= _SPLITS:
            names = ", ".join(sorted(classes))
            raise DataError(f"the folders {names} are no classes but parts of the data: name each apart, as data.train and data.test")
        return inside


@dataclass(frozen=True)
class PathColumns(Wrapper):
    """`source`, but where one of the columns `paths` holds a string, the bytes of the file that it names below `folder` (a path or URI).

    A path that leads out of `folder`, or to no file, is a DataError in its row: a table that somebody sent must not choose what else
    is read here. Bytes, arrays and missing values stay as they are.
    """

    source: Source
    paths: tuple[str, ...]
    folder: str

    def identity(self) -> dict[str, str]:
        """The source's, and size and time of change (or entity tag) of all files that it names."""
        named = [name for name in self.paths if name in self.source.columns() and self._names_files(name)]
        return self.source.identity() | {f"files of column {name}": self._files_identity(name) for name in named}

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        for raw in self.source.read(start, stop, columns):
            for part, opened in self.opened(raw, columns):
                yield {**part, **opened}

    def opened(self, raw: Arrays, columns: Sequence[str]) -> Iterator[tuple[Arrays, Arrays]]:
        """Rows of the table in batches, and beside each batch the contents of the files that `columns` of it name."""
        return opened_beside(raw, [name for name in columns if name in self.paths], self._file)

    def _file(self, value: Any) -> Any:
        """The file that a string names; a DataError where it may name none; any other value as it is."""
        if not isinstance(value, str):
            return value
        path = posixpath.normpath(value)
        # unquote: what a server makes of %2e%2e is not ours to say
        if path == "." or "://" in value or any(_leads_out(form) for form in (path, unquote(path))):
            return DataError(f"{value[:200]!r} names no file below the table's folder: paths are relative to it")
        if "://" in self.folder and re.search("[?#]", path):  # behind a question mark stand options, such as the server that is asked
            return DataError(f"{value[:200]!r}: a path on {self.folder.partition('://')[0]}:// has neither ? nor #")
        return File(with_path(self.folder, lambda folder: f"{folder.rstrip('/')}/{path}"), value)

    def _names_files(self, column: str) -> bool:
        """True if the first rows hold a string: a column of pictures is not read through for its names."""
        first = next(iter(self.source.read(0, min(FILES_AT_ONCE, self.source.rows()), [column])), None)
        return first is not None and _has_text(first[column])

    def _files_identity(self, column: str) -> str:
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_THREADS) as threads:
            for raw in self.source.read(0, self.source.rows(), [column]):
                for version in threads.map(_version, [self._file(value) for value in raw[column]]):
                    digest.update(f"{version}\0".encode())
        return digest.hexdigest()


def opened_beside(raw: Arrays, columns: Sequence[str], file_of: Callable[[Any], Any]) -> Iterator[tuple[Arrays, Arrays]]:
    """Rows in batches, and beside each the contents of the files that `columns` name; a batch as it is where none of them holds a string.

    `file_of` gives the File that a string names, a DataError where it may name none, and any other value as it is.
    """
    named = [name for name in columns if _has_text(raw[name])]
    if not named:
        yield raw, {}
        return
    for low in range(0, len(raw[named[0]]), FILES_AT_ONCE):
        part = {name: column[low : low + FILES_AT_ONCE] for name, column in raw.items()}
        yield part, {name: _contents([file_of(value) for value in part[name]]) for name in named}


def _contents(files: Sequence[File | Any]) -> np.ndarray:
    """(N,) objects: the bytes of each file, or a DataError that names it where it cannot be read; what is no File stays as it is."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return np.fromiter(threads.map(_content, files), object)


def _content(file: File | Any) -> Any:
    if not isinstance(file, File):
        return file
    try:
        with file.open() as opened:
            return opened.read()
    except DataError as error:
        return error.with_traceback(None)  # else it cannot be given to another process
    except (OSError, ValueError) as error:  # ValueError: a name that can be no path, such as one with a zero byte
        return DataError(f"{file.name}: cannot be read: {first_line(error)}")


def _column(name: str, files: Sequence[File]) -> np.ndarray:
    if name != "image":
        return np.fromiter((_label(file) if name == "label" else file.name for file in files), object)
    images = _contents(files)
    for row, file in enumerate(files):
        if isinstance(images[row], DataError):  # `place` names the file already
            images[row] = DataError(str(images[row]).removeprefix(f"{file.name}: "))
    return images


def _label(file: File) -> str:
    return file.name.partition("/")[0]


def _has_text(column: np.ndarray) -> bool:
    return column.dtype.kind == "U" or (column.dtype == object and any(isinstance(value, str) for value in column))


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "~")) or ".." in path.split("/")


def _version(file: Any) -> str:
    try:
        return file.version() if isinstance(file, File) else ""
    except (OSError, ValueError):  # DataError is one; the row reports it when it is read
        return "missing"
