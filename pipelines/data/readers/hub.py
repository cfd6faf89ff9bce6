"""Data sets of the Hugging Face hub, or folders that the `datasets` library loads: `hf://name[:config]`.

The library finds, fetches and converts; its Arrow files are read as any others. Code that comes with a data set is never run: the
library (from 4.0 on) knows no way to.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data.files import File, find, first_line, identity
from pipelines.data.readers.columnar import Arrow
from pipelines.data.readers.image_files import FILES_AT_ONCE, contents
from pipelines.data.source import Files, Skipped
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

_SCHEME = "hf://"


@dataclass(frozen=True)
class Hub:
    """One split of a data set: class labels as their names, pictures as bytes. `split` None: the only one there is.

    What the library makes of a folder is kept in `scratch`; what it fetches from the hub in its own cache (HF_HOME).
    """

    text: str
    split: str | None
    scratch: Path

    @property
    def label(self) -> str:
        name, config = _parts(self.text)
        return "-".join(part for part in (Path(name).name, config, self.split) if part)

    def splits(self) -> tuple[str, ...]:
        """The names of its splits. Raises DataError."""
        return tuple(self._all)

    def identity(self) -> dict[str, str]:
        """The hashes of its Arrow files and of what its columns mean; of a folder also the hashes of the files in it."""
        name, _ = _parts(self.text)
        # pictures that lie in a folder are not in the Arrow file
        folder = identity(find(name), self.scratch) if Path(name).is_dir() and not is_saved(Path(name)) else {}
        return {"split": self._split.name, "columns": self._split.meaning} | folder | self._split.files.identity()

    def columns(self) -> tuple[str, ...]:
        return self._split.files.columns()

    def rows(self) -> int:
        return self._split.files.rows()

    def starts(self) -> Sequence[int]:
        return self._split.files.starts()

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        split = self._split
        pictures = [name for name in columns if name in split.pictures]
        for raw in split.files.read(start, stop, columns):
            batch = dict(raw) | {name: _names(raw[name], split.classes[name]) for name in columns if name in split.classes}
            if not any(isinstance(value, str) for name in pictures for value in batch[name]):
                yield batch
                continue
            for low in range(0, len(batch[pictures[0]]), FILES_AT_ONCE):
                part = {name: column[low : low + FILES_AT_ONCE] for name, column in batch.items()}
                yield part | {name: contents([_picture(value, split.roots) for value in part[name]]) for name in pictures}

    def skipped(self) -> Skipped:
        return Skipped()

    def place(self, row: int) -> str:
        return f"{self.text} {self._split.name}, row {row:,}"

    @cached_property
    def _state(self) -> str:
        """Travels with the source, so that no process reads a folder that has changed since."""
        return _state(_parts(self.text)[0])

    @property
    def _all(self) -> Mapping[str, _Split]:
        name, config = _parts(self.text)
        return _loaded(name, config, self.scratch, self._state)

    @property
    def _split(self) -> _Split:
        there = self._all
        split = next(iter(there)) if self.split is None and len(there) == 1 else self.split
        if split is None or split not in there:
            problem = "has several splits" if split is None else f"has no split {split!r}"
            raise DataError(f"{self.text}: {problem}; splits: {', '.join(there)}")
        return there[split]


@dataclass(frozen=True)
class _Split:
    """What is known of a split once the library has loaded it."""

    name: str
    files: Files
    """Its Arrow files."""
    classes: Mapping[str, tuple[str, ...]]
    """Of each column of class labels, the names."""
    pictures: frozenset[str]
    roots: tuple[Path, ...]
    """Folders below which pictures may lie that the Arrow files only name."""
    meaning: str
    """A hash of the columns' types, class names among them."""


def _parts(text: str) -> tuple[str, str | None]:
    """The name (or folder) and the configuration that `hf://name[:config]` names."""
    name, colon, config = text.removeprefix(_SCHEME).rpartition(":")
    name, config = (name, config) if colon and "/" not in config else (text.removeprefix(_SCHEME), "")
    if not name:
        raise DataError(f"{text}: names no data set; expected hf://name or hf://name:config")
    return name, config or None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _state(name: str) -> str:
    """What changes when a file of a folder does; of a name on the hub nothing does while a process lives."""
    if not Path(name).is_dir():
        return ""
    return hashlib.sha256(json.dumps([(file.uri, file.version()) for file in find(name)]).encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _loaded(name: str, config: str | None, scratch: Path, state: str) -> Mapping[str, _Split]:
    import datasets

    folder = Path(name)
    if not folder.exists() and name.startswith((".", "/", "~")):
        raise DataError(f"{_SCHEME}{name}: there is no such folder")
    if _state(name) != state:
        raise DataError(f"{_SCHEME}{name}: has changed since it was first looked at")
    datasets.disable_progress_bars()
    try:
        if folder.is_dir() and is_saved(folder):
            if config is not None:
                raise DataError(f"{_SCHEME}{name}: was written by save_to_disk and so has no configurations, {config!r} for one")
            found = datasets.load_from_disk(name, keep_in_memory=False)
        else:
            cache = str(scratch / "hub") if folder.is_dir() else None
            found = datasets.load_dataset(name, config, cache_dir=cache, keep_in_memory=False)
    except DataError:
        raise
    except Exception as error:  # whatever any of the library's loaders, or the network, raises
        raise DataError(f"{_SCHEME}{name}: cannot be loaded: {_cause(error)}") from error
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
    return {str(split): _described(f"{_SCHEME}{name}", str(split), part, folder, scratch) for split, part in splits.items()}


def _described(text: str, name: str, split: datasets.Dataset, folder: Path, scratch: Path) -> _Split:
    import datasets
    import huggingface_hub.constants

    features = split.features
    files = tuple(File(str(path.absolute()), path.name) for path in (Path(file["filename"]) for file in split.cache_files))
    if not files:
        raise DataError(f"{text}: its split {name!r} has no rows")
    classes = {column: tuple(kind.names) for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    pictures = frozenset(column for column, kind in features.items() if isinstance(kind, datasets.Image))
    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    roots = (folder.resolve(),) if folder.is_dir() else tuple(Path(cache).resolve() for cache in caches)
    meaning = hashlib.sha256(json.dumps(features.to_dict(), sort_keys=True).encode()).hexdigest()
    return _Split(name, Files(name, tuple(Arrow(file) for file in files), files, scratch), classes, pictures, roots, meaning)


def _cause(error: BaseException) -> str:
    """What the library's "An error occurred" stands for."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _names(numbers: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Class names by number; None where there is none (`datasets` writes -1), a DataError in its row where no class has the number."""
    found = np.empty(len(numbers), dtype=object)
    for row, number in enumerate(numbers.tolist()):
        if number is None or number != number or number == -1:
            continue
        known = 0 <= number < len(classes)
        found[row] = classes[int(number)] if known else DataError(f"class number {number:g}, but there are {len(classes)} classes")
    return found


def _picture(value: Any, roots: tuple[Path, ...]) -> Any:
    """The file that a picture's path names; below the data set's own folders only, as others chose the path."""
    if not isinstance(value, str):
        return value
    path = Path(value).resolve()
    if not any(path.is_relative_to(root) for root in roots):
        return DataError(f"{value[:200]!r} names no file of the data set")
    return File(str(path), value)
