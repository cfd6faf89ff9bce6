"""Which rows are of step k: slice k of an endless sequence of seeded permutations. Computed, never remembered."""

from __future__ import annotations

import functools

import numpy as np

_POOL_BATCHES = 50


class Order:
    """The order of training: `rows` rows in global batches of `batch`, permuted anew for each epoch from `seed`.

    With `lengths` (one for each row) rows of about one length share a batch, so little of it is padding: out of every 50 batches'
    worth of permuted rows, the shortest make a batch, the next ones another, and those batches are taken in a random order.
    """

    def __init__(self, rows: int, batch: int, seed: int, lengths: np.ndarray | None = None) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._lengths = lengths
        self._of_epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def of_step(self, step: int) -> np.ndarray:
        """Row numbers (int64, `batch` of them) of step `step`, counted from 0. A batch may straddle two epochs."""
        epoch, place = divmod(step * self.batch, self.rows)
        index = self._of_epoch(epoch)[place : place + self.batch]
        while len(index) < self.batch:
            epoch += 1
            index = np.concatenate([index, self._of_epoch(epoch)[: self.batch - len(index)]])
        return index

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(self.rows)
        if self._lengths is None:
            return rows
        head = min(-epoch * self.rows % self.batch, self.rows)  # what the last batch of the epoch before still takes
        whole = (self.rows - head) // self.batch * self.batch
        pools = [
            _by_length(pool, self._lengths, self.batch, rng) for pool in np.split(rows[head : head + whole], _pools(whole, self.batch))
        ]
        return np.concatenate([rows[:head], *pools, rows[head + whole :]])


def micro_batches(batch: int, micro_batch: int, *, rank: int, world_size: int) -> list[tuple[int, slice]]:
    """The part of a global batch that `rank` computes: (number of the micro-batch in the whole batch, its rows).

    The cut does not depend on the workers, so neither does dropout, which is seeded by the micro-batch's number.
    """
    count = -(-batch // micro_batch)
    mine = range(rank * count // world_size, (rank + 1) * count // world_size)
    return [(number, slice(number * micro_batch, min((number + 1) * micro_batch, batch))) for number in mine]


def _pools(rows: int, batch: int) -> range:
    """Where `rows` rows are cut into pools of _POOL_BATCHES batches."""
    return range(_POOL_BATCHES * batch, rows, _POOL_BATCHES * batch)


def _by_length(pool: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of `pool` in batches of about one length, the batches in a random order."""
    sorted_rows = pool[np.argsort(lengths[pool], kind="stable")]
    return rng.permutation(sorted_rows.reshape(-1, batch)).reshape(-1)
