"""A folder of pictures, a folder a class: a row a file, labelled by the first part of its name. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.files import File
from pipelines.data.source import Skipped
from workloads.base import Arrays, DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
AT_ONCE = 64
"""Pictures held in memory at a time: a photograph has megabytes, so that BATCH_ROWS of them would have gigabytes."""
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_THREADS = 8  # an object store is waited for, once a file


def pictures_in(files: Sequence[File]) -> tuple[File, ...]:
    """Those of `files` whose ending is that of a picture, in name order."""
    return tuple(sorted((file for file in files if Path(file.name.lower()).suffix in ENDINGS), key=lambda file: file.name))


@dataclass(frozen=True)
class ImageFolder:
    """The pictures among `files` that lie in a folder below the one searched: columns `image` (the file's bytes) and `label` (the folder).

    Other files, and pictures that lie beside the folders, belong to no class and are passed over, as torchvision's ImageFolder does.
    Without `labelled` all pictures count, wherever they lie: columns `image` and `path`, the name below the folder searched.
    """

    files: tuple[File, ...]
    labelled: bool = True

    def columns(self) -> tuple[str, ...]:
        return ("image", "label") if self.labelled else ("image", "path")

    def rows(self) -> int:
        return len(self._pictures)

    def starts(self) -> Sequence[int]:
        return range(0, self.rows(), 4 * AT_ONCE)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        for low in range(start, stop, AT_ONCE):
            files = self._pictures[low : min(low + AT_ONCE, stop)]
            made = {"image": _images, "label": _labels, "path": _paths}
            yield {name: made[name](files) for name in columns}

    def skipped(self) -> Skipped:
        return Skipped()

    def place(self, row: int) -> str:
        return self._pictures[row].name

    @cached_property
    def _pictures(self) -> tuple[File, ...]:
        pictures = pictures_in(self.files)
        if not self.labelled:
            return pictures
        found = tuple(file for file in pictures if "/" in file.name)
        if not found:
            lying = f"{pictures[0].name} lies in no folder" if pictures else "there is no picture"
            raise DataError(f"{lying}: a folder of pictures has a folder for each class, named by it")
        classes = {_label(file) for file in found}
        if classes <= _SPLITS:
            told = ", ".join(sorted(classes))
            raise DataError(f"the folders {told} are no classes but parts of the data: name each apart, as data.train and data.test")
        return found


def contents(files: Sequence[File | Any]) -> np.ndarray:
    """(N,) objects: the bytes of each file, or a DataError that names it where it cannot be read; what is no File stays as it is."""
    found = np.empty(len(files), dtype=object)
    with ThreadPoolExecutor(_THREADS) as threads:
        for row, content in enumerate(threads.map(_content, files)):
            found[row] = content
    return found


def _content(file: File | Any) -> Any:
    if not isinstance(file, File):
        return file
    try:
        with file.open() as opened:
            return opened.read()
    except DataError as error:
        return error.with_traceback(None)  # else it cannot be given to another process
    except (OSError, ValueError) as error:  # ValueError: a name that can be no path, such as one with a zero byte
        message = str(error).partition("\n")[0]
        return DataError(f"{file.name}: cannot be read: {message}")


def _images(files: Sequence[File]) -> np.ndarray:
    found = contents(files)
    for row, file in enumerate(files):
        if isinstance(found[row], DataError):  # `place` names the file already
            found[row] = DataError(str(found[row]).removeprefix(f"{file.name}: "))
    return found


def _labels(files: Sequence[File]) -> np.ndarray:
    return np.array([_label(file) for file in files], dtype=object)


def _paths(files: Sequence[File]) -> np.ndarray:
    return np.array([file.name for file in files], dtype=object)


def _label(file: File) -> str:
    return file.name.partition("/")[0]
