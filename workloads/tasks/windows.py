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
        return (len(self._stored) - self._length) // self._stride + 1

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        places = np.asarray(index)[:, None] * self._stride + np.arange(self._length)
        taken = self._stored.take(places.reshape(-1), columns)
        return {name: column.reshape(*places.shape, *column.shape[1:]) for name, column in taken.items()}


class EndToEnd:
    """Rows (workloads.base.Rows) that are windows of tokens to predict, each with the token before it, one beginning where another ends.

    `token` (B, S). The last window reaches back, so that it is as long as the others; `fresh` (B, T) is False where a token of it was
    predicted in the window before.
    """

    def __init__(self, stored: Rows, window: int) -> None:
        self._stored, self._window = stored, window

    def __len__(self) -> int:
        return -(-(len(self._stored) - 1) // self._window)

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        begin_B = np.asarray(index, np.int64) * self._window
        last = len(self._stored) - 1 - self._window
        places_BS = np.minimum(begin_B, last)[:, None] + np.arange(self._window + 1)
        token_BS = self._stored.take(places_BS.reshape(-1), ["token"])["token"].reshape(places_BS.shape)
        taken = {"token": token_BS, "fresh": places_BS[:, 1:] > begin_B[:, None]}
        return {name: taken[name] for name in columns or taken}
