"""What readers of files share: errors that name the file, batches that fit in memory, the identity of files, columns as arrays."""

from __future__ import annotations

import hashlib
import os
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.files import File, find
from pipelines.data.readers.planned import Plan, batch_rows, identity, reading, to_numpy
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


# ---- several files

LONG_AGO = 1_000_000_000


def old(path: Path, content: str, second: int = LONG_AGO) -> File:
    """A file that was last changed long ago: only such ones are remembered."""
    path.write_text(content)
    os.utime(path, (second, second))
    return File(str(path), path.name)


def test_the_identity_is_the_hash_of_the_content(tmp_path: Path) -> None:
    file = old(tmp_path / "a.csv", "content")
    assert identity([file], tmp_path / "scratch") == {"a.csv": hashlib.sha256(b"content").hexdigest()}


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    file = old(tmp_path / "a.csv", "one")
    first = identity([file], tmp_path / "scratch")
    old(tmp_path / "a.csv", "two")  # of the same size, time and inode: only reading it could tell
    assert identity([file], tmp_path / "scratch") == first
    assert identity([file], tmp_path / "another") != first


@pytest.mark.parametrize(("content", "second"), [("two!", LONG_AGO), ("two", LONG_AGO + 1)])
def test_a_changed_file_is_hashed_anew(tmp_path: Path, content: str, second: int) -> None:
    first = identity([old(tmp_path / "a.csv", "one")], tmp_path / "scratch")
    file = old(tmp_path / "a.csv", content, second)
    assert identity([file], tmp_path / "scratch") == {"a.csv": hashlib.sha256(content.encode()).hexdigest()} != first


def test_a_file_put_in_place_of_another_is_hashed_anew(tmp_path: Path) -> None:
    first = identity([old(tmp_path / "a.csv", "one")], tmp_path / "scratch")
    old(tmp_path / "b.csv", "two")
    os.replace(tmp_path / "b.csv", tmp_path / "a.csv")
    assert identity(find(f"{tmp_path}/a.csv"), tmp_path / "scratch") != first


def test_a_file_changed_just_now_is_not_believed_to_stay(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one")
    stat = (tmp_path / "a.csv").stat()
    file = File(str(tmp_path / "a.csv"), "a.csv")
    first = identity([file], tmp_path / "scratch")
    (tmp_path / "a.csv").write_text("two")
    os.utime(tmp_path / "a.csv", ns=(stat.st_mtime_ns, stat.st_mtime_ns))  # as within one tick of the clock
    assert identity([file], tmp_path / "scratch") != first


@pytest.mark.parametrize("garbage", ["", "[]", "{", '{"a": 1}', "null", '{"PATH": [1]}', '{"PATH": 3}'])
def test_a_damaged_cache_of_hashes_is_made_anew(tmp_path: Path, garbage: str) -> None:
    file = old(tmp_path / "a.csv", "one")
    first = identity([file], tmp_path / "scratch")
    (tmp_path / "scratch" / ".hashes.json").write_text(garbage.replace("PATH", file.uri))
    assert identity([file], tmp_path / "scratch") == first


def test_many_files_are_one_hash_that_tells_any_of_them(tmp_path: Path) -> None:
    files = [old(tmp_path / f"{number:02}.csv", f"{number}") for number in range(30)]
    first = identity(files, tmp_path / "scratch")
    assert list(first) == ["30 files"]
    old(tmp_path / "07.csv", "x")
    old(tmp_path / "07.csv", "xx")
    assert identity(files, tmp_path / "scratch") != first


def test_a_missing_file_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^a\.csv: cannot be read"):
        identity([File(str(tmp_path / "a.csv"), "a.csv")], tmp_path / "scratch")


# ---- columns

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def of(*chunks: Any, kind: pa.DataType | None = None) -> np.ndarray:
    return to_numpy(pa.chunked_array([chunk if isinstance(chunk, pa.Array) else pa.array(chunk, kind) for chunk in chunks]))


@pytest.mark.parametrize(
    ("values", "kind", "dtype"),
    [
        ([1, 2], pa.uint8(), np.uint8),
        ([1.5, 2.5], pa.float32(), np.float32),
        ([True, False], pa.bool_(), np.int8),
        ([Decimal("1.25"), Decimal("-3")], pa.decimal128(8, 2), np.float64),
        ([Decimal("1.25"), Decimal("-3")], pa.decimal256(40, 2), np.float64),
    ],
)
def test_numbers_stay_numbers_and_gaps_are_nan(values: list, kind: pa.DataType, dtype: type) -> None:
    whole, with_gap = of(values, kind=kind), of([*values, None], kind=kind)
    assert whole.dtype == dtype
    assert whole.tolist() == [float(value) for value in values]
    assert with_gap[:-1].tolist() == [float(value) for value in values]
    assert np.isnan(with_gap[-1])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_strings_are_strings_and_gaps_none(kind: pa.DataType) -> None:
    found = of(["a", None, "ü", "a"], ["b"], kind=kind)
    assert found.dtype == object
    assert found.tolist() == ["a", None, "ü", "a", "b"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)])
def test_bytes_are_bytes(kind: pa.DataType) -> None:
    assert of([b"ab", None, b"\xff\x00"], kind=kind).tolist() == [b"ab", None, b"\xff\x00"]


@pytest.mark.parametrize("wide", [pa.string(), pa.large_string()])
def test_text_that_is_not_utf8_is_an_error_in_its_place_in_the_column(wide: pa.DataType) -> None:
    same = pa.large_binary() if wide == pa.large_string() else pa.binary()
    found = of(pa.array([b"good", b"ab\xff", None], same).view(wide))
    assert found[0] == "good"
    assert isinstance(found[1], DataError)
    assert "not UTF-8 at byte 2" in str(found[1])
    assert found[2] is None


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view, lambda kind: pa.list_(kind, 2)])
def test_lists_of_one_length_are_stacked(make: Any) -> None:
    found = of([[1, 2], [3, 4]], [[5, 6]], kind=make(pa.int16()))
    assert found.dtype == np.int16
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_slice_of_lists_gives_its_own_values() -> None:
    column = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2))
    assert of(column[1:2]).tolist() == [[3, 4]]
    assert of(column.cast(pa.list_(pa.int8()))[1:]).tolist() == [[3, 4], [5, 6]]


def test_lists_of_lists_are_stacked_at_every_level() -> None:
    pixels = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(of(pixels.tolist()), pixels)


@pytest.mark.parametrize(
    "values", [[[1], [2, 3]], [[1, 2], None], [["a", "b"], ["c", "d"]], [[[1, 2], [3]], [[4, 5], [6, 7]]], [[{"a": 1}], [{"a": 2}]]]
)
def test_other_lists_are_objects(values: list) -> None:
    found = of(values)
    assert found.shape == (2,)
    assert found.tolist() == values


def test_a_dictionary_of_lists_is_its_lists() -> None:
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([[1, 2], [3, 4]]))
    assert of(encoded).tolist() == [[1, 2], [3, 4], [1, 2]]


def test_tensors_have_their_shape() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    assert np.array_equal(of(column), pixels)
    assert np.array_equal(of(column[1:], column[:1]), pixels[[1, 2, 0]])
    gap = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2], None], pa.list_(pa.int8(), 2)))
    assert of(gap).tolist() == [[1, 2], None]


def test_a_picture_is_its_bytes_or_else_its_path() -> None:
    pictures = [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None, {"bytes": None, "path": None}]
    assert of(pictures, kind=PICTURE).tolist() == [b"x", "b.png", None, None]
    assert of([{"bytes": None, "path": "b.png"}], kind=pa.struct([("bytes", pa.null()), ("path", pa.string())])).tolist() == ["b.png"]


def test_times_are_numpys() -> None:
    assert of([1, None], kind=pa.timestamp("us", "UTC")).astype("datetime64[us]").astype(str).tolist() == [
        "1970-01-01T00:00:00.000001",
        "NaT",
    ]


@pytest.mark.parametrize(
    "kind", [pa.null(), pa.int64(), pa.string(), pa.list_(pa.int8()), pa.bool_(), PICTURE, pa.fixed_shape_tensor(pa.int8(), [2])]
)
def test_no_rows_are_no_rows(kind: pa.DataType) -> None:
    assert len(to_numpy(pa.chunked_array([], kind))) == 0


def test_a_column_of_nothing_is_none() -> None:
    assert of(pa.nulls(2)).tolist() == [None, None]
