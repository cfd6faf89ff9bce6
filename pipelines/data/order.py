"""Which rows are of step k: slice k of an endless sequence of seeded permutations. Computed, never remembered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

LISTED_ROWS = 1 << 20
"""Up to so many rows the permutation of an epoch is written out (8 MB, 50 ms); of more rows each place is computed when it is asked for."""
_POOL_BATCHES = 50
_ROUNDS = 6

Lengths = Callable[[np.ndarray], np.ndarray]
"""Lengths of the rows of an index."""


class Order:
    """The order of training: `rows` rows in global batches of `batch`, permuted anew for each epoch from `seed`.

    With `lengths` rows of about one length share a batch, so little of it is padding: out of every 50 batches' worth of permuted rows,
    the shortest make a batch, the next ones another, and those batches are taken in a random order.
    """

    def __init__(self, rows: int, batch: int, seed: int, lengths: Lengths | None = None) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._lengths = lengths
        self._of_epoch = functools.lru_cache(maxsize=2)(self._permutation)
        self._of_pool = functools.lru_cache(maxsize=2)(self._pool)

    def of_step(self, step: int) -> np.ndarray:
        """Row numbers (int64, `batch` of them) of step `step`, counted from 0. A batch may straddle two epochs."""
        epoch, place = divmod(step * self.batch, self.rows)
        index = self._places(epoch, place, min(place + self.batch, self.rows))
        while len(index) < self.batch:
            epoch += 1
            index = np.concatenate([index, self._places(epoch, 0, min(self.batch - len(index), self.rows))])
        return index

    def _places(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """The rows at places [start, stop) of an epoch's order."""
        if self.rows <= LISTED_ROWS:
            return self._of_epoch(epoch)[start:stop]
        if self._lengths is None:
            return permuted(np.arange(start, stop), self.rows, self.seed, epoch)
        return np.concatenate(list(self._pooled(epoch, start, stop)))

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(self.rows)
        if self._lengths is None:
            return rows
        head, whole = self._whole_batches(epoch)
        cuts = range(_POOL_BATCHES * self.batch, whole, _POOL_BATCHES * self.batch)
        pools = [_by_length(pool, self._lengths(pool), self.batch, rng) for pool in np.split(rows[head : head + whole], cuts)]
        return np.concatenate([rows[:head], *pools, rows[head + whole :]])

    def _pooled(self, epoch: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """The rows at places [start, stop), pool by pool; what belongs to a batch of the epoch before or behind is in no pool."""
        head, whole = self._whole_batches(epoch)
        size = _POOL_BATCHES * self.batch
        while start < stop:
            if start < head or start >= head + whole:
                end = min(stop, head) if start < head else stop
                yield permuted(np.arange(start, end), self.rows, self.seed, epoch)
            else:
                number, place = divmod(start - head, size)
                end = min(stop, head + (number + 1) * size, head + whole)
                yield self._of_pool(epoch, number)[place : place + end - start]
            start = end

    def _pool(self, epoch: int, number: int) -> np.ndarray:
        head, whole = self._whole_batches(epoch)
        low, size = head + number * _POOL_BATCHES * self.batch, _POOL_BATCHES * self.batch
        rows = permuted(np.arange(low, min(low + size, head + whole)), self.rows, self.seed, epoch)
        assert self._lengths
        return _by_length(rows, self._lengths(rows), self.batch, np.random.default_rng([self.seed, epoch, number]))

    def _whole_batches(self, epoch: int) -> tuple[int, int]:
        """(rows at an epoch's beginning that the last batch of the epoch before still takes, rows of the whole batches behind them)."""
        head = min(-epoch * self.rows % self.batch, self.rows)
        return head, (self.rows - head) // self.batch * self.batch


def permuted(places: np.ndarray, rows: int, seed: int, epoch: int) -> np.ndarray:
    """What stands at `places` of a permutation of `rows` rows, without the rest of it.

    A Feistel network permutes the numbers of an even count of bits; one that leads outside is permuted until it leads inside (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = np.uint64(-(-max(rows - 1, 1).bit_length() // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.default_rng([seed, epoch]).integers(0, 1 << 63, _ROUNDS, dtype=np.uint64)
    found = places.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right, key) & mask)
        found[outside] = (left << half) | right
        outside = outside[found[outside] >= rows]
    return found.astype(np.int64)


def _mixed(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """Each number well mixed with the key (the finalizer of splitmix64; Steele, Lea and Flood, 2014)."""
    mixed = (numbers + key) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))


def micro_batches(batch: int, micro_batch: int, *, rank: int, world_size: int) -> list[tuple[int, slice]]:
    """The part of a global batch that `rank` computes: (number of the micro-batch in the whole batch, its rows).

    The cut does not depend on the workers, so neither does dropout, which is seeded by the micro-batch's number.
    """
    count = -(-batch // micro_batch)
    mine = range(rank * count // world_size, (rank + 1) * count // world_size)
    return [(number, slice(number * micro_batch, min((number + 1) * micro_batch, batch))) for number in mine]


def _by_length(pool: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of `pool` in batches of about one length, the batches in a random order."""
    sorted_rows = pool[np.argsort(lengths, kind="stable")]
    return rng.permutation(sorted_rows.reshape(-1, batch)).reshape(-1)
