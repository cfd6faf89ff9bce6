"""Which split a row falls into: computed from its number, so any process can tell for any range of rows.

Rows without an order are drawn: each block of 1,000 is permuted by its own seed and cut by the shares, so adding rows at the end moves no
earlier one, 10,000 rows at 0.8/0.1/0.1 give exactly 8,000/1,000/1,000, and no split can lack a part of an ordered file.
Rows with an order (a series, a text) are cut into consecutive parts, so nothing later is trained on than what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "validation", "test")
_BLOCK = 1000


@dataclass(frozen=True)
class Drawn:
    """Splits of rows that have no order, by `shares` that sum to one."""

    shares: tuple[float, float, float]
    seed: int

    def rows_of(self, split: int, start: int, stop: int) -> np.ndarray:
        """The rows of [start, stop), counted from `start`, that belong to `split`."""
        return np.flatnonzero(split_of(start, stop, shares=self.shares, seed=self.seed) == split)


@dataclass(frozen=True)
class Consecutive:
    """Splits of ordered rows: `sizes` rows each, in order; later rows are unused. All but the first keep `context` rows before theirs."""

    sizes: tuple[int, int, int]
    context: int = 0

    @classmethod
    def by_shares(cls, rows: int, shares: tuple[float, float, float], context: int = 0) -> Consecutive:
        edges = [*np.round(np.cumsum([0, *shares[:2]]) * rows).astype(int).tolist(), rows]
        return cls((edges[1] - edges[0], edges[2] - edges[1], edges[3] - edges[2]), context)

    def rows_of(self, split: int, start: int, stop: int) -> np.ndarray:
        """The rows of [start, stop), counted from `start`, that belong to `split`, its context included."""
        first = sum(self.sizes[:split])
        low, high = max(first - self.context, 0, start), min(first + self.sizes[split], stop)
        return np.arange(low - start, max(low, high) - start)


Splitting = Drawn | Consecutive


def split_of(start: int, stop: int, *, shares: tuple[float, float, float], seed: int) -> np.ndarray:
    """The split (index into SPLITS, int8) of each of the rows [start, stop)."""
    edges = np.round(np.cumsum(shares[:2]) * _BLOCK)
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = [np.random.default_rng([seed, block]).permutation(_BLOCK) for block in range(first, last)]
    places = np.concatenate(blocks)[start - first * _BLOCK : stop - first * _BLOCK] if blocks else np.empty(0)
    return np.searchsorted(edges, places, side="right").astype(np.int8)
