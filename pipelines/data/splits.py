"""Which split a row falls into: a function of its number and a seed, so adding rows at the end moves no earlier one.

Each block of 1,000 rows is permuted by its own seed and cut by the shares, so 10,000 rows at 0.8/0.1/0.1 give exactly
8,000/1,000/1,000, and no split can lack a part of an ordered file.
"""

from __future__ import annotations

import numpy as np

SPLITS = ("train", "validation", "test")
_BLOCK = 1000


def split_of(start: int, stop: int, *, shares: tuple[float, float, float], seed: int) -> np.ndarray:
    """The split (index into SPLITS, int8) of each of the rows [start, stop)."""
    edges = np.round(np.cumsum(shares[:2]) * _BLOCK)
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = [np.random.default_rng([seed, block]).permutation(_BLOCK) for block in range(first, last)]
    places = np.concatenate(blocks)[start - first * _BLOCK : stop - first * _BLOCK] if blocks else np.empty(0)
    return np.searchsorted(edges, places, side="right").astype(np.int8)
