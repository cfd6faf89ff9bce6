"""Windows over rows that follow one another: a series or a text is stored once, and an example is a view of a part of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..base import DataError, Rows


class Windows:
    """Rows (workloads.base.Rows) that are windows of `length` stored rows, beginning at every `stride`th of them.

    A column of stored rows (N, …) becomes one of windows (W, length, …).
    """

    def __init__(self, stored: Rows, *, length: int, stride: int = 1) -> None:
        self._stored, self._length, self._stride = stored, length, stride
        if len(stored) < length:
            raise DataError(f"{len(stored):,} rows in order are too few for one window of {length:,}")

    def __len__(self) -> int:
        return count(len(self._stored), self._length, self._stride)

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        places = np.asarray(index)[:, None] * self._stride + np.arange(self._length)
        taken = self._stored.take(places.reshape(-1), columns)
        return {name: column.reshape(*places.shape, *column.shape[1:]) for name, column in taken.items()}


def count(rows: int, length: int, stride: int = 1) -> int:
    """How many windows `rows` rows hold."""
    return max(0, (rows - length) // stride + 1)
