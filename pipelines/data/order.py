"""Which rows are of step k: slice k of an endless sequence of seeded permutations. Computed, never remembered."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """The order of training: `rows` rows in global batches of `batch`, permuted anew for each epoch from `seed`."""

    rows: int
    batch: int
    seed: int

    def of_step(self, step: int) -> np.ndarray:
        """Row numbers (int64, `batch` of them) of step `step`, counted from 0. A batch may straddle two epochs."""
        epoch, place = divmod(step * self.batch, self.rows)
        index = _permutation(self.rows, self.seed, epoch)[place : place + self.batch]
        while len(index) < self.batch:
            epoch += 1
            index = np.concatenate([index, _permutation(self.rows, self.seed, epoch)[: self.batch - len(index)]])
        return index


def micro_batches(batch: int, micro_batch: int, *, rank: int, world_size: int) -> list[tuple[int, slice]]:
    """The part of a global batch that `rank` computes: (number of the micro-batch in the whole batch, its rows).

    The cut does not depend on the workers, so neither does dropout, which is seeded by the micro-batch's number.
    """
    count = -(-batch // micro_batch)
    mine = range(rank * count // world_size, (rank + 1) * count // world_size)
    return [(number, slice(number * micro_batch, min((number + 1) * micro_batch, batch))) for number in mine]


@functools.lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)
