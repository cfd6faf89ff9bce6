"""Rows as Parquet, CSV or JSON lines: what type each column has, what a format cannot hold, written and joined a batch at a time.

Types are fixed before the first row is written, so that all parts have the same ones.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from workloads.base import DataError

Format = Literal["parquet", "csv", "jsonl"]
ENDINGS: Mapping[str, Format] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_GROUP_ROWS, _GROUP_BYTES = 8192, 32 << 20


def kind_of(batches: Sequence[np.ndarray]) -> pa.DataType:
    """The type of a column, told from a few batches of it: what all have; numbers of several kinds are float64; else text."""
    kinds = {array_of(values).type for values in batches} - {pa.null()}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds and all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        fractions = (values[np.isfinite(values)] for values in batches if values.dtype.kind == "f")
        whole = any(map(pa.types.is_integer, kinds)) and all((found == np.floor(found)).all() for found in fractions)
        return pa.int64() if whole else pa.float64()
    return pa.string()


def array_of(values: Any) -> pa.Array:
    """A column as Arrow has it, missing values null: numbers, texts, bytes, lists; arrays of one shape as a tensor type."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values))
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError):  # values of several kinds
        return pa.array([None if value is None else _text(value) for value in values], pa.string())


def batch_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Columns with the types of `schema`. Raises DataError for a value that has another."""
    return pa.record_batch([_cast(field, columns[field.name]) for field in schema], schema=schema)


def holds(form: Format, kind: pa.DataType) -> bool:
    """Whether a column of that type can be kept: text files hold no bytes, and a table of text no arrays."""
    if form == "parquet":
        return True
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not binary and not (form == "csv" and isinstance(kind, pa.FixedShapeTensorType))


def write(path: Path, form: Format, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, header: bool = True) -> None:
    """A file of these rows; `header`: whether a CSV file begins with the columns' names."""
    {"parquet": _write_parquet, "csv": _write_csv, "jsonl": _write_jsonl}[form](path, schema, batches, header)


def join(parts: Iterable[Path], path: Path, form: Format, schema: pa.Schema) -> None:
    """The rows of parts, which were written without headers, as one file."""
    if form == "parquet":
        return _write_parquet(path, schema, (batch for part in parts for batch in _read_parquet(part)), True)
    with path.open("wb") as joined:
        if form == "csv":
            joined.write(_header(schema))
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, joined, 1 << 20)
    return None


def _cast(field: pa.Field, values: Any) -> pa.Array:
    found = array_of(values)
    if found.type == field.type:
        return found
    if pa.types.is_string(field.type):
        return pa.array([None if value is None else _text(value) for value in found.to_pylist()], pa.string())
    try:
        return found.cast(field.type)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"column {field.name}: is {found.type}, but {field.type} in the rows that were looked at first: {error}") from None


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(len(one) for one in held) >= _GROUP_ROWS or sum(one.nbytes for one in held) >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _write_parquet(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], header: bool) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for table in _grouped(batches):
            writer.write_table(table)


def _read_parquet(part: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(part) as file:
        yield from file.iter_batches(_GROUP_ROWS)


def _write_csv(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], header: bool) -> None:
    import pyarrow.csv

    options = pyarrow.csv.WriteOptions(include_header=False)
    with path.open("wb") as file:
        if header:
            file.write(_header(schema))
        for batch in batches:
            flat = [_flat(column) for column in batch.columns]
            pyarrow.csv.write_csv(pa.Table.from_arrays(flat, batch.schema.names), file, options)


def _header(schema: pa.Schema) -> bytes:
    import pyarrow.csv

    sink = io.BytesIO()
    pyarrow.csv.write_csv(pa.table({name: pa.array([], pa.string()) for name in schema.names}), sink)
    return sink.getvalue()


def _flat(column: pa.Array) -> pa.Array:
    """Lists as JSON: a table of text has no other place for them."""
    if not pa.types.is_nested(column.type):
        return column
    return pa.array([None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in column.to_pylist()])


def _write_jsonl(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], header: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            columns = [_listed(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                row = dict(zip(schema.names, values, strict=True))
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _listed(column: pa.Array) -> list[Any]:
    return column.to_numpy_ndarray().tolist() if isinstance(column, pa.FixedShapeTensorArray) else column.to_pylist()
