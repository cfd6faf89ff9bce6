"""Several readers, or several sources, are one, and a source may be read under other names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.files import File
from pipelines.data.readers.planned import Files
from pipelines.data.source import BATCH_ROWS, Renamed, Skipped, SplitSources, batches_of, even_starts, joined
from tests.made import InMemory
from workloads.base import DataError


def parts(sizes: list[int], batch: int = 3) -> tuple[InMemory, ...]:
    """Sources whose rows are numbered on from one to the next."""
    edges = np.cumsum([0, *sizes]).tolist()
    return tuple(
        InMemory(
            {"x": np.arange(start, stop), "y": np.array([f"row {row}" for row in range(start, stop)], dtype=object)},
            batch,
            label=str(number),
        )
        for number, (start, stop) in enumerate(pairwise(edges))
    )


def files(readers: tuple[InMemory, ...]) -> Files:
    return Files("data", readers, tuple(File(f"/{reader.label}", reader.label) for reader in readers), Path("/nowhere"))


SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@given(sizes=SIZES, data=st.data())
def test_rows_of_readers_one_after_another_are_the_rows_of_one(sizes: list[int], data: st.DataObject) -> None:
    source, rows = files(parts(sizes)), sum(sizes)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert source.rows() == rows
    assert source.sizes == sizes
    found = joined(list(source.read(start, stop, ["y", "x"])))
    assert list(found) == (["y", "x"] if stop > start else [])
    if stop > start:
        assert found["x"].tolist() == list(range(start, stop))
        assert found["y"].tolist() == [f"row {row}" for row in range(start, stop)]


@given(sizes=SIZES)
def test_reading_may_begin_where_a_reader_may_be_entered(sizes: list[int]) -> None:
    starts = files(parts(sizes)).starts()
    edges = np.cumsum([0, *sizes]).tolist()
    assert starts == [row for start, stop in pairwise(edges) for row in range(start, stop, 3)]


@given(sizes=SIZES)
def test_a_row_is_told_as_its_own_reader_counts_it(sizes: list[int]) -> None:
    source = files(parts(sizes))
    places = [f"{number}, row {row}" for number, size in enumerate(sizes) for row in range(size)]
    assert [source.place(row) for row in range(sum(sizes))] == places


def test_files_of_other_columns_are_refused_by_name() -> None:
    one, two = InMemory({"x": np.zeros(2), "y": np.zeros(2)}, label="a.csv"), InMemory({"x": np.zeros(2)}, label="b.csv")
    with pytest.raises(DataError, match=r"^b\.csv: its columns are not those of a\.csv: 'y' is in one of them only$"):
        files((one, two)).columns()


def test_columns_in_another_order_are_the_same_columns() -> None:
    source = files((InMemory({"x": np.zeros(2), "y": np.ones(2)}), InMemory({"y": np.ones(2), "x": np.zeros(2)})))
    assert source.columns() == ("x", "y")
    assert joined(list(source.read(0, 4, source.columns())))["y"].tolist() == [1, 1, 1, 1]


@dataclass(frozen=True, eq=False)
class Torn(InMemory):
    lost: int = 0

    def skipped(self) -> Skipped:
        return Skipped(self.lost, tuple(f"{self.label}, row {row}: torn" for row in range(min(self.lost, 10))))


def test_rows_that_readers_left_out_are_added_up_and_the_first_ten_told() -> None:
    source = files(tuple(Torn({"x": np.zeros(1)}, label=name, lost=lost) for name, lost in (("a", 7), ("b", 0), ("c", 30))))
    assert source.skipped().count == 37
    assert source.skipped().examples == tuple(f"a, row {row}: torn" for row in range(7)) + tuple(f"c, row {row}: torn" for row in range(3))


def test_sources_of_splits_are_told_apart_in_what_the_content_is() -> None:
    one, two = InMemory({"x": np.zeros(2), "more": np.zeros(2)}, content="1"), InMemory({"x": np.zeros(3)}, content="2")
    source = SplitSources(("train", "test"), (one, two))
    assert source.identity() == {"train: made": "1", "test: made": "2"}
    assert source.columns() == ("x",)
    assert (source.sizes, source.rows(), source.label) == ([2, 3], 5, "made")


def test_a_source_is_read_under_the_names_of_the_task() -> None:
    source = Renamed(
        InMemory({"review": np.arange(4), "stars": np.arange(4) * 10, "id": np.arange(4)}), (("label", "stars"), ("text", "review"))
    )
    assert source.columns() == ("text", "label", "id")
    (batch,) = source.read(1, 3, ["label", "id", "text"])
    assert {name: column.tolist() for name, column in batch.items()} == {"label": [10, 20], "id": [1, 2], "text": [1, 2]}
    assert source.identity() == {"made": "1", "column label": "stars", "column text": "review"}
    assert (source.rows(), source.place(3), source.label) == (4, "made, row 3", "made")


def test_a_name_that_the_source_does_not_have_is_told() -> None:
    source = Renamed(InMemory({"review": np.arange(4)}), (("text", "reviews"),))
    with pytest.raises(DataError, match=r"^data\.columns: there is no column 'reviews'; columns: review$"):
        source.columns()


def test_two_columns_may_change_names() -> None:
    source = Renamed(InMemory({"a": np.array([1]), "b": np.array([2])}), (("a", "b"), ("b", "a")))
    assert source.columns() == ("b", "a")
    (batch,) = source.read(0, 1, ["a", "b"])
    assert (batch["a"].tolist(), batch["b"].tolist()) == ([2], [1])


@pytest.mark.parametrize("rows", [0, 1, BATCH_ROWS, BATCH_ROWS + 1, 3 * BATCH_ROWS])
def test_columns_in_memory_are_given_a_few_thousand_rows_at_a_time(rows: int) -> None:
    batches = list(batches_of({"x": np.arange(rows)}, 0, rows))
    assert all(0 < len(batch["x"]) <= BATCH_ROWS for batch in batches)
    assert [row for batch in batches for row in batch["x"].tolist()] == list(range(rows))
    assert even_starts(rows)[0] == 0
    assert all(start < max(rows, 1) for start in even_starts(rows))
