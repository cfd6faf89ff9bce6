"""Arrow's columns as the arrays that a task is given: numbers, or Python objects with None where a value is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(N, …) for lists of one length at every level, else (N,): numbers with NaN, strings, bytes or lists with None, where one is missing.

    A picture as `datasets` stores it (a struct of bytes and path) is its bytes, or its path where there are none. Text that is not
    UTF-8 is a DataError in its row. Raises pyarrow's exceptions for a type that has no such form, such as a union.
    """
    import pyarrow as pa
    import pyarrow.compute

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if isinstance(kind, pa.FixedShapeTensorType) and len(column) and not column.null_count:
            return column.combine_chunks().to_numpy_ndarray()
        return to_numpy(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):  # not cast(): it knows no dictionaries of lists
        return to_numpy(pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type))
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8()).to_numpy()
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64()).to_numpy()
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        content, path = (to_numpy(pa.compute.struct_field(column, name)) for name in ("bytes", "path"))
        return np.where(content == None, path, content)  # noqa: E711
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view)
    if any(is_one(kind) for is_one in lists):
        return _lists(column)
    if pa.types.is_struct(kind):  # not to_numpy(): its integers are floats where another row has none
        return _objects(column)
    if is_text(kind):
        return _text(column)
    return column.to_numpy()


def is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _lists(column: pa.ChunkedArray) -> np.ndarray:
    """Stacked where every list has the same length and holds numbers; else objects."""
    import pyarrow.compute as pc

    lengths = pc.unique(pc.list_value_length(column))
    if not column.null_count and len(lengths) == 1:
        inside = to_numpy(_flat(column))
        if inside.dtype != object:
            return inside.reshape(len(column), lengths[0].as_py(), *inside.shape[1:])
    return _objects(column)


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    found = np.empty(len(column), dtype=object)
    found[:] = column.to_pylist()
    return found


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of all lists, one after another."""
    import pyarrow as pa

    return pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)


def _text(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa

    try:
        return column.to_numpy()
    except (pa.ArrowException, UnicodeDecodeError):  # the one or the other, as pyarrow's version has it
        found = np.empty(len(column), dtype=object)
        found[:] = [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]
        return found


def _decoded(content: bytes | None) -> str | DataError | None:
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        return DataError(f"text that is not UTF-8 at byte {error.start:,}")
