"""Arrow's columns as arrays, compared with what pyarrow itself says of each value."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data.readers.columns import to_numpy
from workloads.base import DataError

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
def test_text_that_is_not_utf8_is_an_error_in_its_row(wide: pa.DataType) -> None:
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
