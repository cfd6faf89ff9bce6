"""Small things that tests of the data's path are made of: a dataset written piece by piece, a source of rows held in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pyarrow.fs import FileSelector, FileType

from pipelines.data import dataset
from pipelines.data.dataset import MANIFEST, Dataset, join, parts, shards_of
from pipelines.data.files import filesystem_of
from pipelines.data.source import Skipped
from pipelines.data.splits import SPLITS
from pipelines.data.stats import Summary
from pipelines.data.store import Store
from workloads.base import Arrays

GENERATOR = np.random.default_rng(0)
COLUMNS = {
    "one": GENERATOR.integers(-(2**60), 2**60, 37),
    "pixels": GENERATOR.integers(0, 256, (37, 3, 4, 5), dtype=np.uint8),
    "grey": GENERATOR.integers(0, 256, (37, 1, 4, 5), dtype=np.uint8),
    "long": GENERATOR.integers(-(2**60), 2**60, (37, 2, 3, 2)),
    "real": GENERATOR.normal(size=(37, 2, 1, 3)).astype(np.float32),
    "scalar": GENERATOR.normal(size=37).astype(np.float32),
}
CUTS = (0, 5, 6, 20, 37)
_BATCH = 4


def store_in(folder: Path, place: str | None = None) -> Store:
    return Store(place or str(folder / "kept"), folder / "cache")


def folders_in(store: Store) -> list[str]:
    """The names of what a store holds, finished or not."""
    filesystem, root = filesystem_of(store.place)
    listed = filesystem.get_file_info(FileSelector(root.rstrip("/"), allow_not_found=True))
    return sorted(info.base_name for info in listed if info.type == FileType.Directory)


def written(
    store: Store,
    name: str = "data",
    columns: Arrays = COLUMNS,
    *,
    sample: Arrays | None = None,
    shard_bytes: int = dataset.SHARD_BYTES,
) -> None:
    """A dataset whose three splits hold the same rows, in four pieces of several batches each, as `prepare` writes them."""
    work, told = f".parts.{uuid.uuid4().hex}", []
    for number, (start, stop) in enumerate(pairwise(CUTS)):
        with store.workspace() as here:
            with parts(here) as add:
                for split, low in ((split, low) for split in SPLITS for low in range(start, stop, _BATCH)):
                    add(split, {one: column[low : min(low + _BATCH, stop)] for one, column in columns.items()})
            sizes = {split: (here / split).stat().st_size for split in SPLITS}
            for split in SPLITS:
                store.put(here / split, work, f"{split}-{number}.part")
        told.append({"parts": {split: [f"{split}-{number}", size] for split, size in sizes.items()}})
    with store.writing(name, last=MANIFEST) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD_BYTES", shard_bytes)
        joined = [join(store, work, folder, one) for one in shards_of(told)]
        dataset.finish(
            store,
            folder,
            joined,
            fingerprint=name,
            source={"rows": "made up"},
            encoding={"mean": [0.25]},
            summary=Summary(read=37, used=37, splits=dict.fromkeys(SPLITS, 37)),
            sample={"one": columns["one"][:3]} if sample is None else sample,
        )
    store.remove(work)


def dataset_in(folder: Path, columns: Arrays = COLUMNS, **how: int) -> Dataset:
    store = store_in(folder)
    written(store, columns=columns, **how)
    return Dataset.open(store.folder("data"))


@dataclass(frozen=True, eq=False)
class InMemory:
    """A source of these columns, read `batch` rows at a time; `promised` rows if it does not hold its word."""

    held: Arrays
    batch: int = 10
    promised: int | None = None
    content: str = "1"
    label: str = "made"

    def identity(self) -> dict[str, str]:
        return {self.label: self.content}

    def columns(self) -> tuple[str, ...]:
        return tuple(self.held)

    def rows(self) -> int:
        return len(next(iter(self.held.values()))) if self.promised is None else self.promised

    def starts(self) -> Sequence[int]:
        return range(0, max(self.rows(), 1), self.batch)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        held = min(stop, len(next(iter(self.held.values()))))
        for low in range(start, held, self.batch):
            yield {name: self.held[name][low : min(low + self.batch, held)] for name in columns}

    def skipped(self) -> Skipped:
        return Skipped()

    def place(self, row: int) -> str:
        return f"{self.label}, row {row:,}"
