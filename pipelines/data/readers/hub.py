"""Data sets of the Hugging Face hub, or folders that the `datasets` library loads: `hf://name[:config]`.

The library downloads and converts; its Arrow files are read like any others. Code in a data set's repository is never executed: the
library has no way to since version 4.0.
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

from pipelines.data.files import File, find, first_line
from pipelines.data.readers.columnar import Arrow
from pipelines.data.readers.image_files import opened_beside
from pipelines.data.readers.planned import Files, identity
from pipelines.data.source import Source, Wrapper
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

_SCHEME = "hf://"


@dataclass(frozen=True)
class Hub(Wrapper):
    """One split of a data set: class labels as names, images as bytes. `split` None: its only split.

    Files that the library converts from a folder are kept in `scratch`; downloads in its own cache (HF_HOME).
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
        """Hashes of the Arrow files and of the column types; for a folder also the hashes of its files."""
        name, _ = _parts(self.text)
        # the Arrow file of an image folder holds paths, not the images
        folder = identity(find(name), self.scratch) if Path(name).is_dir() and not is_saved(Path(name)) else {}
        return {"split": self._split.name, "columns": self._split.meaning} | folder | self._split.files.identity()

    @property
    def source(self) -> Source:  # type: ignore[override]
        return self._split.files

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        split = self._split
        pictures = [name for name in columns if name in split.pictures]
        for raw in split.files.read(start, stop, columns):
            batch = dict(raw) | {name: _class_names(raw[name], split.classes[name]) for name in columns if name in split.classes}
            for part, opened in opened_beside(batch, pictures, lambda value: _picture(value, split.roots)):
                yield {**part, **opened}

    def place(self, row: int) -> str:
        return f"{self.text} {self._split.name}, row {row:,}"

    @cached_property
    def _state(self) -> str:
        """The state of the folder when first opened; pickled with the source, so no process reads a folder that has changed since."""
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
    """A split that the library has loaded."""

    name: str
    files: Files
    """Its Arrow files."""
    classes: Mapping[str, tuple[str, ...]]
    """Column of class labels -> class names."""
    pictures: frozenset[str]
    roots: tuple[Path, ...]
    """Folders below which the image paths in the Arrow files may lead."""
    meaning: str
    """A hash of the column types, including class names."""


def _parts(text: str) -> tuple[str, str | None]:
    """Name (or folder) and configuration of `hf://name[:config]`."""
    name, colon, config = text.removeprefix(_SCHEME).rpartition(":")
    name, config = (name, config) if colon and "/" not in config else (text.removeprefix(_SCHEME), "")
    if not name:
        raise DataError(f"{text}: names no data set; expected hf://name or hf://name:config")
    return name, config or None


def is_saved(folder: Path) -> bool:
    """True for a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _state(name: str) -> str:
    """A hash of the names and versions of a folder's files; empty for a name on the hub."""
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
    """The first line of the innermost cause: the library's own message is often only "An error occurred"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _class_names(numbers: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """(N,) class names; None for a missing label (`datasets` writes -1), a DataError in place of a number without a class."""

    def name(number: Any) -> Any:
        if number is None or number != number or number == -1:
            return None
        problem = f"class number {number:g}, but there are {len(classes)} classes"
        return classes[int(number)] if 0 <= number < len(classes) else DataError(problem)

    return np.fromiter(map(name, numbers.tolist()), object)


def _picture(value: Any, roots: tuple[Path, ...]) -> Any:
    """The file of an image path; a DataError if it leads out of `roots`: whoever made the data set chose the path."""
    if not isinstance(value, str):
        return value
    path = Path(value).resolve()
    if not any(path.is_relative_to(root) for root in roots):
        return DataError(f"{value[:200]!r} names no file of the data set")
    return File(str(path), value)
