"""What readers of binary files share: errors that name the file, and batches that fit in memory."""

from __future__ import annotations

import zipfile

import pyarrow as pa
import pytest

from pipelines.data.files import File
from pipelines.data.readers.planned import Plan, batch_rows, reading
from pipelines.data.source import BATCH_ROWS
from workloads.base import DataError

FILE = File("/x/a.bin", "a.bin")


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid("bad\nworse"), pa.ArrowMemoryError("bad"), OSError("bad"), EOFError("bad"), zipfile.BadZipFile("bad")]
)
def test_what_a_library_says_is_told_in_one_line_that_names_the_file(error: Exception) -> None:
    with pytest.raises(DataError) as caught, reading(FILE, "Parquet"):
        raise error
    assert str(caught.value) == "a.bin: cannot be read as Parquet: bad"


def test_a_mistake_of_our_own_is_not_taken_for_damage() -> None:
    with pytest.raises(AttributeError), reading(FILE, "Parquet"):
        raise AttributeError("nope")
    told = DataError("as it was", 3)
    with pytest.raises(DataError) as caught, reading(FILE, "Parquet"):
        raise told
    assert caught.value is told


def test_a_batch_has_no_more_than_64_mebibytes_but_one_row() -> None:
    assert [batch_rows(size) for size in (0, 1, 1 << 20, 1 << 40)] == [BATCH_ROWS, BATCH_ROWS, 64, 1]


@pytest.mark.parametrize(("edges", "starts"), [((0,), [0]), ((0, 0), [0]), ((0, 5), [0]), ((0, 5, 5, 9), [0, 5]), ((0, 0, 9, 9), [0])])
def test_parts_without_rows_are_no_starts(edges: tuple[int, ...], starts: list[int]) -> None:
    assert list(Plan("", ("a",), edges).starts) == starts
