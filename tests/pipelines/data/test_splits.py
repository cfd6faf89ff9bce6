"""Which split a row falls into is a function of its number and a seed, and of nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.splits import SPLITS, ByColumn, ByKey, Consecutive, Drawn, Given, Splitting, draw_by_class, split_of
from workloads.base import Arrays, DataError

SHARES = (0.8, 0.1, 0.1)
ROWS = st.integers(0, 5000)


def in_pieces(splitting: Splitting, split: int, rows: int, piece: int, raw: Arrays | None = None) -> list[int]:
    """The rows of a split, asked for range by range."""
    found: list[int] = []
    for start in range(0, rows, piece):
        stop = min(start + piece, rows)
        values = {name: column[start:stop] for name, column in (raw or {}).items()}
        found += (start + splitting.rows_of(split, start, stop, values)).tolist()
    return found


def of_each_row(splitting: Splitting, rows: int, raw: Arrays | None = None) -> list[int]:
    """The split of each row; every row must have one."""
    found = sorted((row, split) for split in range(3) for row in splitting.rows_of(split, 0, rows, raw or {}).tolist())
    assert [row for row, _ in found] == list(range(rows))
    return [split for _, split in found]


def objects(*values: Any) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


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
    parts = [drawn.rows_of(split, start, start + length, {}).tolist() for split in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(length))


def test_ordered_rows_are_cut_into_consecutive_parts_that_look_back_on_their_context() -> None:
    parts = Consecutive((10, 4, 3), context=2)
    assert [parts.rows_of(split, 0, 20, {}).tolist() for split in range(3)] == [list(range(10)), list(range(8, 14)), list(range(12, 17))]


def test_shares_of_ordered_rows_use_them_all() -> None:
    assert Consecutive.by_shares(17420, (0.6, 0.2, 0.2)).sizes == (10452, 3484, 3484)
    assert sum(Consecutive.by_shares(101, (1 / 3, 1 / 3, 1 / 3)).sizes) == 101


@given(sizes=st.tuples(*[st.integers(1, 40)] * 3), context=st.integers(0, 20), piece=st.integers(1, 30))
def test_pieces_of_ordered_rows_give_what_the_whole_gives(sizes: tuple[int, int, int], context: int, piece: int) -> None:
    parts, rows = Consecutive(sizes, context), sum(sizes) + 5
    for split in range(3):
        whole = parts.rows_of(split, 0, rows, {}).tolist()
        assert in_pieces(parts, split, rows, piece) == whole


# ---- by a key


@settings(max_examples=50)
@given(
    keys=st.lists(st.integers(0, 9) | st.integers(-(2**53), 2**53), min_size=1, max_size=60),
    more=st.lists(st.integers(0, 9), max_size=30),
    piece=st.integers(1, 20),
    text=st.booleans(),
)
def test_rows_of_one_key_share_a_split_wherever_they_are(keys: list[int], more: list[int], piece: int, text: bool) -> None:
    def column(values: list[int]) -> dict[str, np.ndarray]:
        return {"patient": objects(*(f"p{value}" for value in values)) if text else np.array(values)}

    by_key = ByKey("patient", (0.4, 0.3, 0.3), seed=1)
    before, after = of_each_row(by_key, len(keys), column(keys)), of_each_row(by_key, len(keys + more), column(keys + more))
    assert after[: len(keys)] == before
    of_key = dict(zip(keys, before, strict=True))
    assert before == [of_key[key] for key in keys]
    for split in range(3):
        assert in_pieces(by_key, split, len(keys), piece, column(keys)) == [row for row, found in enumerate(before) if found == split]


@pytest.mark.parametrize("other", [np.array([7.0, 8.0, 123456.0]), objects("7", "8", "123456"), objects(7, 8, 123456)])
def test_a_key_is_the_same_as_an_integer_a_float_or_text(other: np.ndarray) -> None:
    for seed in range(20):
        by_key = ByKey("key", (0.4, 0.3, 0.3), seed)
        assert of_each_row(by_key, 3, {"key": np.array([7, 8, 123456])}) == of_each_row(by_key, 3, {"key": other})


def test_keys_are_drawn_by_their_shares_and_by_the_seed() -> None:
    keys = {"key": np.arange(20_000)}
    drawn = [of_each_row(ByKey("key", (0.7, 0.2, 0.1), seed), 20_000, keys) for seed in (0, 1)]
    for splits in drawn:
        # three deviations of a binomial of 20,000
        assert np.bincount(splits) == pytest.approx([14_000, 4_000, 2_000], abs=200)
    assert np.mean(np.array(drawn[0]) == np.array(drawn[1])) == pytest.approx(0.7**2 + 0.2**2 + 0.1**2, abs=0.02)


MISSING = [
    objects("a", None, "b"),
    objects(None, None),
    np.array([1.0, 2.0, np.nan]),
    np.array(["2020-01-01", "NaT"], "datetime64[ns]"),
    np.array(["2020-01-01", "NaT"], "datetime64[s]"),
]


@pytest.mark.parametrize("column", MISSING)
@pytest.mark.parametrize("kind", [ByColumn("split"), ByKey("split", SHARES, 0)])
def test_a_row_whose_split_cannot_be_told_is_named(kind: Splitting, column: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"^column split: is missing, so the row cannot be assigned to a split$") as error:
        kind.rows_of(0, 0, len(column), {"split": column})
    assert error.value.row == [value is None or value != value for value in column].index(True)


@pytest.mark.parametrize("kind", [ByColumn("split"), ByKey("split", SHARES, 0)])
def test_a_column_of_arrays_tells_no_split(kind: Splitting) -> None:
    with pytest.raises(DataError, match=r"^column split: "):
        kind.rows_of(0, 0, 4, {"split": np.zeros((4, 2))})


# ---- by a column


def test_a_column_names_the_splits_in_any_spelling() -> None:
    named = {
        0: ["train", "training", "Train", " TRAINING "],
        1: ["validation", "valid", "val", "dev", "Dev"],
        2: ["test", "testing", "TEST"],
    }
    values = [(split, name) for split, names in named.items() for name in names][::-1]
    column = objects(*(name for _, name in values))
    assert of_each_row(ByColumn("part"), len(column), {"part": column}) == [split for split, _ in values]
    assert of_each_row(ByColumn("part"), len(column), {"part": column.astype(str)}) == [split for split, _ in values]


@pytest.mark.parametrize(("odd", "told"), [("tset", "'tset'"), ("", "''"), ("0", "'0'"), ("train,test", "'train,test'")])
def test_an_odd_name_of_a_split_names_its_row(odd: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        ByColumn("part").rows_of(0, 100, 104, {"part": objects("train", "val", odd, odd)})
    assert str(error.value) == f"column part: {told} is not a split; write train, validation or test"
    assert error.value.row == 2


def test_numbers_name_no_split() -> None:
    with pytest.raises(DataError, match="column part: 0 is not a split"):
        ByColumn("part").rows_of(0, 0, 3, {"part": np.array([0, 1, 2])})


# ---- given as files of their own


@given(sizes=st.tuples(st.integers(1, 40), st.integers(0, 20), st.integers(0, 20)), piece=st.integers(1, 30), ordered=st.booleans())
def test_rows_of_given_files_are_theirs_and_what_is_missing_is_cut_from_the_first(
    sizes: tuple[int, int, int], piece: int, ordered: bool
) -> None:
    shares = [0.6, *(0.0 if size else 0.2 for size in sizes[1:])]
    first, second, third = (share / sum(shares) for share in shares)
    cut = Consecutive.by_shares(sizes[0], (first, second, third)) if ordered else Drawn((first, second, third), 3)
    given_, rows = Given(sizes, cut), sum(sizes)
    belongs = of_each_row(given_, rows)
    assert belongs[sizes[0] :] == [1] * sizes[1] + [2] * sizes[2]
    assert belongs[: sizes[0]] == of_each_row(cut, sizes[0])
    assert not {split for split in (1, 2) if sizes[split]} & set(belongs[: sizes[0]])
    for split in range(3):
        assert in_pieces(given_, split, rows, piece) == [row for row, found in enumerate(belongs) if found == split]


def test_what_is_cut_from_an_ordered_file_looks_back_inside_it_alone() -> None:
    given_ = Given((10, 0, 4), Consecutive((8, 2, 0), context=3))
    assert [given_.rows_of(split, 0, 14, {}).tolist() for split in range(3)] == [list(range(8)), [5, 6, 7, 8, 9], [10, 11, 12, 13]]


# ---- by class

LABELS = st.lists(st.sampled_from("aaaaabbc"), min_size=1, max_size=200)
SOME_SHARES = st.sampled_from([SHARES, (0.6, 0.2, 0.2), (0.34, 0.33, 0.33), (0.98, 0.01, 0.01)])


def batches(labels: list[str], rows: int = 7) -> list[np.ndarray]:
    return [np.array(labels[start : start + rows], dtype=object) for start in range(0, len(labels), rows)]


@settings(max_examples=60)
@given(labels=LABELS, shares=SOME_SHARES, rarer_than=st.sampled_from([None, 10, 50]), rows=st.integers(1, 50))
def test_a_class_that_is_drawn_by_itself_is_in_every_split(
    labels: list[str], shares: tuple[float, float, float], rarer_than: int | None, rows: int
) -> None:
    drawn = Drawn(shares, 0)
    belongs = of_each_row(draw_by_class(batches(labels, rows), drawn, rarer_than=rarer_than), len(labels))
    chances = of_each_row(drawn, len(labels))
    for label, count in Counter(labels).items():
        here = [row for row, other in enumerate(labels) if other == label]
        if rarer_than and count >= rarer_than:
            assert [belongs[row] for row in here] == [chances[row] for row in here]
        elif count >= 3:
            assert {belongs[row] for row in here} == {0, 1, 2}
        else:
            assert len({belongs[row] for row in here}) == count


@settings(max_examples=60)
@given(labels=LABELS, more=LABELS, shares=SOME_SHARES)
def test_rows_appended_move_no_row_of_a_stratified_split(labels: list[str], more: list[str], shares: tuple[float, float, float]) -> None:
    before, after = (
        of_each_row(draw_by_class(batches(all_), Drawn(shares, 0), rarer_than=None), len(all_)) for all_ in (labels, labels + more)
    )
    assert after[: len(labels)] == before


@given(labels=LABELS, more=LABELS)
def test_rows_appended_move_no_row_of_a_class_that_stays_rare(labels: list[str], more: list[str]) -> None:
    before, after = (
        of_each_row(draw_by_class(batches(all_), Drawn(SHARES, 0), rarer_than=50), len(all_)) for all_ in (labels, labels + more)
    )
    still = {label for label, count in Counter(labels + more).items() if count < 50}
    always_common = {label for label, count in Counter(labels).items() if count >= 50}
    for row, label in enumerate(labels):
        assert label not in still | always_common or before[row] == after[row]


@pytest.mark.parametrize("rows", [30, 31, 100, 1003])
@pytest.mark.parametrize("shares", [SHARES, (0.6, 0.2, 0.2), (0.5, 0.4, 0.1)])
def test_a_class_that_is_drawn_by_itself_is_cut_by_the_shares_to_a_row(rows: int, shares: tuple[float, float, float]) -> None:
    splitting = draw_by_class(batches(["a", "b"] * rows), Drawn(shares, 0), rarer_than=None)
    for label in (0, 1):
        counts = np.bincount(of_each_row(splitting, 2 * rows)[label::2], minlength=3)
        assert counts == pytest.approx(np.array(shares) * rows, abs=1)


def test_nothing_is_drawn_by_class_where_no_class_is_rare() -> None:
    drawn = Drawn(SHARES, 0)
    assert draw_by_class(batches(["a", "b"] * 50), drawn, rarer_than=50) is drawn


@given(labels=LABELS, piece=st.integers(1, 40))
def test_a_stratified_split_does_not_depend_on_the_range_asked_for(labels: list[str], piece: int) -> None:
    splitting = draw_by_class(batches(labels), Drawn(SHARES, 0), rarer_than=20)
    belongs = of_each_row(splitting, len(labels))
    for split in range(3):
        assert in_pieces(splitting, split, len(labels), piece) == [row for row, found in enumerate(belongs) if found == split]


def test_a_split_of_no_share_gets_no_row_of_any_class() -> None:
    belongs = of_each_row(draw_by_class(batches(["a"] * 40 + ["b"]), Drawn((0.9, 0.1, 0.0), 0), rarer_than=None), 41)
    assert np.bincount(belongs, minlength=3) == pytest.approx([37, 4, 0], abs=1)
    assert 2 not in belongs


@pytest.mark.parametrize("labels", [np.zeros((4, 2)), objects([1], [2, 3], [], [1]), objects(None, None, "a", "b")])
def test_labels_that_no_task_takes_are_left_to_the_task(labels: np.ndarray) -> None:
    assert len(of_each_row(draw_by_class([labels], Drawn(SHARES, 0), rarer_than=50), 4)) == 4
