"""What pieces left behind becomes a dataset: parts are joined into shards, rows that two splits share are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.dataset import SHARD_BYTES, Shard, join
from pipelines.data.splits import SPLITS
from pipelines.data.store import Store
from pipelines.sealed import describe

Told = Mapping[str, Any]
"""What pieces.Encoder says of a piece."""


@dataclass(frozen=True)
class Joiner:
    """Joins parts that lie in the folder `work` of a store into a shard in its folder `folder`."""

    store: Store
    work: str
    folder: str

    def __call__(self, shard: Sequence[Any]) -> dict[str, Any]:
        """(split, number, names of the parts) to {"shard": the Shard, "columns": name -> type} as JSON values."""
        split, number, parts = shard
        with self.store.workspace() as here:
            target = here / "joined"
            rows, columns = join([self.store.get(self.work, f"{part}.part", here) for part in parts], target)
            made = Shard(split=split, number=number, rows=rows, file=describe(target))
            self.store.put(target, self.folder, made.name)
        return {"shard": made.model_dump(mode="json"), "columns": columns}


def shared_out(told: Sequence[Told]) -> list[tuple[str, int, list[str]]]:
    """Which parts make each shard: (split, number, names of the parts)."""
    shards: list[tuple[str, int, list[str]]] = []
    for split in SPLITS:
        number, size = -1, SHARD_BYTES
        for name, part_bytes in (one["parts"][split] for one in told if split in one["parts"]):
            if number < 0 or size + part_bytes > SHARD_BYTES:
                number, size = number + 1, 0
                shards.append((split, number, []))
            shards[-1][2].append(name)
            size += part_bytes
    return shards


def leaked(store: Store, work: str, told: Sequence[Told]) -> int:
    """How many test rows are in the training rows as well, whatever their labels; only the test rows' hashes are held at once."""
    with store.workspace() as here:
        names = {split: [one["parts"][split][0] for one in told if split in one["parts"]] for split in ("train", "test")}
        if not names["test"]:
            return 0
        test = np.concatenate([np.load(store.get(work, f"{name}.npy", here)) for name in names["test"]])
        found = np.zeros(len(test), bool)
        for name in names["train"]:
            found |= np.isin(test, np.load(store.get(work, f"{name}.npy", here)))
        return int(found.sum())
