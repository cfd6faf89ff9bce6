"""Columns keep their types and their missing values, in one type over all parts; what a format cannot hold is told beforehand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines.evaluation import output
from workloads.base import DataError


def objects(*values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


@pytest.mark.parametrize(
    ("batches", "kind"),
    [
        ([np.arange(3)], pa.int64()),
        ([np.arange(3, dtype=np.uint8)], pa.uint8()),
        ([np.arange(3), np.array([1.0, np.nan])], pa.int64()),  # whole numbers, of which another batch lacks one
        ([np.arange(3), np.array([1.5, np.nan])], pa.float64()),
        ([np.array([1.0, 2.0])], pa.float64()),
        ([objects(None, None), objects("a", None)], pa.string()),
        ([objects(None)], pa.string()),
        ([objects("a"), np.arange(2)], pa.string()),
        ([objects("a", 1)], pa.string()),
        ([objects(b"a", None)], pa.binary()),
        ([objects([1.0, 2.0], [3.0])], pa.list_(pa.float64())),
        ([np.zeros((2, 3, 4), np.uint8)], pa.fixed_shape_tensor(pa.uint8(), (3, 4))),
    ],
)
def test_a_column_has_the_type_that_all_of_it_can_have(batches, kind):
    assert output.kind_of(batches) == kind


def test_missing_numbers_are_missing_and_whole_ones_stay_whole():
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    batch = output.batch_of({"a": np.array([1.0, np.nan]), "b": objects({"x": 1}, None)}, schema)
    assert batch.to_pydict() == {"a": [1, None], "b": ['{"x": 1}', None]}


def test_a_value_of_another_type_than_the_first_rows_is_told():
    with pytest.raises(DataError, match="column a: is double, but int64 in the first rows"):
        output.batch_of({"a": np.array([0.5])}, pa.schema([("a", pa.int64())]))


def test_text_files_hold_no_bytes_and_a_table_of_text_no_arrays():
    tensor = pa.fixed_shape_tensor(pa.uint8(), (3, 4))
    kinds = (pa.string(), pa.list_(pa.int8()), pa.binary(), tensor)
    held = {form: [output.holds(form, kind) for kind in kinds] for form in ("csv", "jsonl")}
    assert held == {"csv": [True, True, False, False], "jsonl": [True, True, False, True]}
    assert all(output.holds("parquet", kind) for kind in (pa.binary(), tensor))


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_joined_parts_are_the_file_that_is_written_at_once(form, tmp_path):
    schema = pa.schema([("a", pa.int64()), ('odd "name",\n', pa.string()), ("list", pa.list_(pa.float64()))])
    batches = [pa.record_batch([[row], [f'"{row}", \n é'], [[row, 0.5]]], schema=schema) for row in range(5)]
    output.write(tmp_path / "whole", form, schema, batches)
    parts = [tmp_path / str(number) for number in range(3)]
    for number, part in enumerate(parts):
        output.write(part, form, schema, batches[2 * number : 2 * number + 2], header=False)
    output.join(parts, tmp_path / "joined", form, schema)
    read = {"parquet": lambda path: pa.parquet.read_table(path).to_pydict()}.get(form, lambda path: path.read_bytes())
    assert read(tmp_path / "joined") == read(tmp_path / "whole")
