"""Which split a row falls into is a function of its number and a seed, and of nothing else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.splits import SPLITS, Consecutive, Drawn, split_of

SHARES = (0.8, 0.1, 0.1)
ROWS = st.integers(0, 5000)


def test_ten_thousand_rows_are_cut_exactly() -> None:
    counts = np.bincount(split_of(0, 10_000, shares=SHARES, seed=0))
    assert dict(zip(SPLITS, counts.tolist(), strict=True)) == {"train": 8000, "validation": 1000, "test": 1000}


def test_every_thousand_rows_hold_every_split_in_its_share() -> None:
    blocks = split_of(0, 5000, shares=(0.5, 0.2, 0.3), seed=3).reshape(5, 1000)
    assert all(np.bincount(block).tolist() == [500, 200, 300] for block in blocks)


@given(first=ROWS, more=ROWS, seed=st.integers(0, 2**40))
def test_rows_appended_move_no_earlier_row(first: int, more: int, seed: int) -> None:
    before, after = split_of(0, first, shares=SHARES, seed=seed), split_of(0, first + more, shares=SHARES, seed=seed)
    np.testing.assert_array_equal(after[:first], before)


@given(cuts=st.lists(ROWS, max_size=5))
def test_the_split_of_a_row_does_not_depend_on_the_range_asked_for(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 5000]
    pieces = [split_of(start, stop, shares=SHARES, seed=1) for start, stop in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), split_of(0, 5000, shares=SHARES, seed=1))


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    first, again, other = (split_of(0, 1000, shares=SHARES, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_two_blocks_are_not_cut_alike() -> None:
    first, second = split_of(0, 2000, shares=SHARES, seed=0).reshape(2, 1000)
    assert (first != second).any()


@given(start=ROWS, length=st.integers(0, 3000), seed=st.integers(0, 2**32))
def test_rows_that_are_drawn_belong_to_one_split_each(start: int, length: int, seed: int) -> None:
    drawn = Drawn(SHARES, seed)
    parts = [drawn.rows_of(split, start, start + length).tolist() for split in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(length))


def test_ordered_rows_are_cut_into_consecutive_parts_that_look_back_on_their_context() -> None:
    parts = Consecutive((10, 4, 3), context=2)
    assert [parts.rows_of(split, 0, 20).tolist() for split in range(3)] == [list(range(10)), list(range(8, 14)), list(range(12, 17))]


def test_shares_of_ordered_rows_use_them_all() -> None:
    assert Consecutive.by_shares(17420, (0.6, 0.2, 0.2)).sizes == (10452, 3484, 3484)
    assert sum(Consecutive.by_shares(101, (1 / 3, 1 / 3, 1 / 3)).sizes) == 101


@given(sizes=st.tuples(*[st.integers(1, 40)] * 3), context=st.integers(0, 20), piece=st.integers(1, 30))
def test_pieces_of_ordered_rows_give_what_the_whole_gives(sizes: tuple[int, int, int], context: int, piece: int) -> None:
    parts, rows = Consecutive(sizes, context), sum(sizes) + 5
    for split in range(3):
        whole = parts.rows_of(split, 0, rows).tolist()
        joined = [start + row for start in range(0, rows, piece) for row in parts.rows_of(split, start, min(start + piece, rows)).tolist()]
        assert joined == whole
