"""Windows are those of numpy's sliding_window_view, whatever their length, stride and order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.base import DataError
from workloads.tasks.windows import Windows


class Stored:
    """Rows held in memory."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name].take(index, axis=0) for name in columns or self.columns}


def numbers(rows: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, *shape))


@given(rows=st.integers(1, 60), length=st.integers(1, 60), stride=st.integers(1, 9), seed=st.integers(0, 9))
def test_windows_are_those_of_numpys_sliding_view(rows: int, length: int, stride: int, seed: int) -> None:
    flat, deep = numbers(rows), numbers(rows, 2, 3)
    if rows < length:
        with pytest.raises(DataError, match=f"{rows} rows .* one window of {length}"):
            Windows(Stored(flat=flat), length=length, stride=stride)
        return
    windows = Windows(Stored(flat=flat, deep=deep), length=length, stride=stride)
    flat_view = np.lib.stride_tricks.sliding_window_view(flat, length)[::stride]
    deep_view = np.moveaxis(np.lib.stride_tricks.sliding_window_view(deep, length, axis=0), -1, 1)[::stride]
    assert len(windows) == len(flat_view)
    index = np.random.default_rng(seed).integers(0, len(windows), 7)
    taken = windows.take(index)
    np.testing.assert_array_equal(taken["flat"], flat_view[index])
    np.testing.assert_array_equal(taken["deep"], deep_view[index])


def test_only_the_columns_asked_for_are_read() -> None:
    windows = Windows(Stored(one=numbers(9), other=numbers(9)), length=4)
    assert list(windows.take(np.arange(2), ["other"])) == ["other"]


def test_no_index_at_all_gives_no_window_but_its_shape() -> None:
    assert Windows(Stored(values=numbers(9, 2)), length=4).take(np.arange(0))["values"].shape == (0, 4, 2)


def test_a_window_beyond_the_last_row_is_no_window() -> None:
    with pytest.raises(IndexError):
        Windows(Stored(values=numbers(9)), length=4).take(np.array([6]))
