"""What is made ahead comes as it would have come in time, and no thread outlives who asked for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.prefetch import ahead, side_by_side
from workloads.base import DataError


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("delivery")]


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_items_come_in_order_and_all_of_them(depth: int) -> None:
    with ahead(iter(range(100)), depth) as ready:
        assert list(ready) == list(range(100))
    assert not threads()


def test_nothing_and_none_are_items_like_others() -> None:
    with ahead([None, 0, "", None]) as ready:
        assert list(ready) == [None, 0, "", None]
    with ahead([]) as ready:
        assert list(ready) == []


def test_no_more_is_made_than_is_asked_for_and_a_few_ahead() -> None:
    made: list[int] = []
    enough = threading.Event()

    def making() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            if number == 3:
                enough.set()
            yield number

    with ahead(making(), 2) as ready:
        assert next(ready) == 0
        assert enough.wait(10)  # one was taken, two wait, one is in the hand
        threading.Event().wait(0.3)
        assert made == [0, 1, 2, 3]
    assert len(made) == 4
    assert not threads()


@pytest.mark.parametrize("error", [DataError("row 3 is bad"), KeyboardInterrupt(), StopIteration("early"), SystemExit(3)])
def test_what_making_raises_is_raised_where_it_is_asked_for(error: BaseException) -> None:
    class Making:
        """Not a generator: those turn a StopIteration into another error."""

        def __init__(self) -> None:
            self.made = 0

        def __iter__(self) -> Making:
            return self

        def __next__(self) -> int:
            self.made += 1
            if self.made > 3:
                raise error
            return self.made

    seen = []
    with ahead(Making()) as ready:
        if isinstance(error, StopIteration):  # what an iterator ends with
            seen += ready
        else:
            seen += [next(ready) for _ in range(3)]
            with pytest.raises(type(error)) as raised:
                next(ready)
            assert raised.value is error
    assert seen == [1, 2, 3]
    assert not threads()


def test_an_error_is_not_told_before_the_items_made_before_it_were_taken() -> None:
    def making() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("bad")

    with ahead(making(), 50) as ready:
        assert (next(ready), next(ready)) == (1, 2)
        with pytest.raises(DataError, match="bad"):
            next(ready)


def leave(how: BaseException | None) -> None:
    with ahead(iter(range(10**9)), 1) as ready:
        assert next(ready) == 0
        if how:
            raise how


@pytest.mark.parametrize("how", [None, ValueError("mine"), KeyboardInterrupt()])
def test_the_thread_ends_with_the_block_however_that_is_left(how: BaseException | None) -> None:
    if how:
        with pytest.raises(type(how)) as error:
            leave(how)
        assert error.value is how
    else:
        leave(how)
    assert not threads()


# ---- several sequences


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 6), max_size=8), count=st.integers(1, 4))
def test_sequences_that_are_made_side_by_side_come_one_after_another(sizes: list[int], count: int) -> None:
    sequences = [[(number, item) for item in range(size)] for number, size in enumerate(sizes)]
    assert list(side_by_side(iter(sequences), count)) == [item for sequence in sequences for item in sequence]
    assert not threads()


def test_an_error_in_a_later_sequence_is_told_once_the_earlier_ones_were_given() -> None:
    def broken() -> Iterator[int]:
        yield 3
        raise DataError("bad")

    seen = []
    with pytest.raises(DataError, match="bad"):
        seen.extend(side_by_side([[1, 2], broken(), [4]], 3))
    assert not threads()
    items = side_by_side([[1, 2], broken(), [4]], 3)
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    items.close()
    assert not threads()


def test_the_next_sequences_are_begun_and_no_more() -> None:
    begun: list[int] = []

    def sequence(number: int) -> Iterator[int]:
        begun.append(number)
        yield number

    items = side_by_side((sequence(number) for number in range(100)), 2)
    assert next(items) == 0
    items.close()
    assert set(begun) <= {0, 1}
    assert not threads()
