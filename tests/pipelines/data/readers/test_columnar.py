"""Parquet and Arrow files are read in pieces and come out as pyarrow itself reads them; damaged ones are refused by name."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File, find
from pipelines.data.readers.columnar import Arrow, Parquet
from pipelines.data.source import BATCH_ROWS, joined
from tests import damage
from workloads.base import DataError

ROWS, PART = 1000, 300
TABLE = pa.table(
    {
        "text": pa.array([None if row % 7 == 0 else f"row {row} ü" for row in range(ROWS)]),
        "number": pa.array(range(ROWS), pa.int32()),
        "pixels": pa.array([[row % 256] * 4 for row in range(ROWS)], pa.list_(pa.uint8())),
        "kind": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(),
        "a.b": pa.array([row / 2 for row in range(ROWS)]),
        "a": pa.array([{"b": row} for row in range(ROWS)]),
        "yes": pa.array([row % 3 == 0 for row in range(ROWS)]),
    }
)


def parquet(path: Path, table: pa.Table = TABLE, **options: Any) -> None:
    pa.parquet.write_table(table, path, row_group_size=PART, **options)


def ipc_file(path: Path, table: pa.Table = TABLE, compression: str | None = None) -> None:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=PART)


def ipc_stream(path: Path, table: pa.Table = TABLE, compression: str | None = None) -> None:
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=PART)


def packed_stream(path: Path, table: pa.Table = TABLE) -> None:
    ipc_stream(path, table, "zstd")


def feather(path: Path, table: pa.Table = TABLE) -> None:
    pa.feather.write_feather(table, path, compression="lz4", chunksize=PART)


WRITERS = {"parquet": parquet, "file": ipc_file, "stream": ipc_stream, "packed stream": packed_stream, "feather": feather}


def opened(path: Path) -> Parquet | Arrow:
    (file,) = find(str(path))
    return Parquet(file) if path.suffix == ".parquet" else Arrow(file)


def written(folder: Path, how: str, table: pa.Table = TABLE) -> Path:
    path = folder / ("t.parquet" if how == "parquet" else "t.arrow")
    WRITERS[how](path, table)
    return path


def read(reader: Parquet | Arrow, start: int, stop: int, columns: list[str]) -> dict[str, list]:
    batches = list(reader.read(start, stop, columns))
    assert all(0 < len(next(iter(batch.values()))) <= BATCH_ROWS for batch in batches)
    return {name: column.tolist() for name, column in joined(batches).items()}


@pytest.fixture(scope="module", params=WRITERS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("columnar"), request.param)


def test_columns_rows_and_parts_are_those_of_the_file(path: Path) -> None:
    reader = opened(path)
    assert reader.columns() == tuple(TABLE.column_names)
    assert reader.rows() == ROWS
    assert list(reader.starts()) == [0, 300, 600, 900]
    assert reader.place(1234) == f"{path.name}, row 1,234"
    assert reader.skipped().count == 0


@settings(max_examples=40)
@given(data=st.data())
def test_any_range_of_any_columns_is_what_pyarrow_reads(path: Path, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, ROWS - 1))
    stop = data.draw(st.integers(start + 1, ROWS))
    columns = data.draw(st.lists(st.sampled_from(TABLE.column_names), min_size=1, unique=True))
    assert read(opened(path), start, stop, columns) == TABLE.slice(start, stop - start).select(columns).to_pydict()


def test_no_rows_give_no_batches(path: Path) -> None:
    assert list(opened(path).read(5, 5, ["text"])) == []


def test_a_reader_travels_with_what_it_knows(path: Path) -> None:
    reader = opened(path)
    reader.rows()
    assert read(pickle.loads(pickle.dumps(reader)), 299, 301, ["number"]) == {"number": [299, 300]}  # noqa: S301


def test_a_column_or_row_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(DataError, match="there is no column 'nope'; columns: text, number"):
        list(opened(path).read(0, 1, ["nope"]))
    with pytest.raises(DataError, match="has 1,000 rows, but row 1,000 was asked for"):
        list(opened(path).read(0, 1001, ["text"]))


@pytest.mark.parametrize("how", WRITERS)
def test_an_empty_table_has_no_rows(tmp_path: Path, how: str) -> None:
    reader = opened(written(tmp_path, how, TABLE.slice(0, 0)))
    assert (reader.rows(), list(reader.starts()), list(reader.read(0, 0, ["text"]))) == (0, [0], [])


@pytest.mark.parametrize("how", ["parquet", "file", "stream"])
def test_a_column_twice_is_refused(tmp_path: Path, how: str) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match=r"t\.\w+: has the column 'a' more than once"):
        opened(written(tmp_path, how, twice)).columns()


@pytest.mark.parametrize("how", ["parquet", "file", "stream"])
def test_a_table_without_columns_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(DataError, match=r"t\.\w+: has no columns"):
        opened(written(tmp_path, how, pa.table({}))).columns()


@pytest.mark.parametrize("how", ["parquet", "file", "stream"])
def test_text_that_is_not_utf8_is_an_error_in_its_row(tmp_path: Path, how: str) -> None:
    table = pa.table({"text": pa.array([b"good", b"\xff", None], pa.binary()).view(pa.string())})
    (batch,) = opened(written(tmp_path, how, table)).read(0, 3, ["text"])
    assert (batch["text"][0], batch["text"][2]) == ("good", None)
    assert isinstance(batch["text"][1], DataError)


@pytest.mark.parametrize("how", ["file", "stream"])
def test_a_type_without_an_array_is_refused_by_name(tmp_path: Path, how: str) -> None:
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    with pytest.raises(DataError, match=r"t\.arrow: column 'u' of type sparse_union.* cannot be read"):
        list(opened(written(tmp_path, how, pa.table({"u": union}))).read(0, 2, ["u"]))


def test_large_rows_come_in_small_batches(tmp_path: Path) -> None:
    pictures = pa.table({"image": pa.array([bytes([row]) * (3 << 20) for row in range(30)])})
    parquet(tmp_path / "t.parquet", pictures, compression="none", use_dictionary=False, write_statistics=False)
    ipc_file(tmp_path / "t.arrow", pictures)
    for path in tmp_path.iterdir():
        sizes = [len(batch["image"]) for batch in opened(path).read(0, 30, ["image"])]
        assert sum(sizes) == 30
        assert max(sizes) <= 21  # 64 MiB


def test_one_row_group_is_not_held_as_a_whole(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"n": np.random.default_rng(0).random(4_000_000)}), tmp_path / "t.parquet", compression="none")
    batches = opened(tmp_path / "t.parquet").read(0, 4_000_000, ["n"])
    next(batches)
    assert pa.default_memory_pool().bytes_allocated() < 8_000_000  # of 32 MB
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_that_changes_between_plan_and_read_is_refused(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    reader = opened(path)
    assert reader.rows() == ROWS
    written(tmp_path, how, TABLE.slice(0, 400))
    with pytest.raises(DataError, match=r"t\.\w+: has changed since its rows were counted"):
        list(reader.read(0, ROWS, ["number"]))
    assert opened(path).rows() == 400


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_that_changes_while_it_is_read_gives_no_rows_of_two_versions(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how, pa.table({"number": range(2 * BATCH_ROWS)}))
    batches = opened(path).read(0, 2 * BATCH_ROWS, ["number"])
    assert next(batches)["number"][0] == 0
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="has changed"):
        list(batches)


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_that_disappears_is_told(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    reader = opened(path)
    reader.rows()
    path.unlink()
    with pytest.raises(DataError, match=r"t\.\w+: there is no such file any more"):
        list(reader.read(0, ROWS, ["number"]))


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("harm", [damage.truncate, damage.empty, damage.zero_page])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, how: str, harm: Callable[[Path], None]) -> None:
    path = written(tmp_path, how)
    harm(path)
    with pytest.raises(DataError, match=r"^t\.(parquet|arrow): "):
        list(opened(path).read(0, ROWS, TABLE.column_names))


@pytest.mark.parametrize("how", ["stream", "packed stream"])
def test_a_stream_that_ends_between_two_batches_is_refused(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    path.write_bytes(path.read_bytes()[:-8])  # the end mark
    with pytest.raises(DataError, match=r"t\.arrow: its end mark is missing"):
        opened(path).rows()


def test_feather_of_version_1_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(DataError, match=r"t\.feather: is Feather of version 1"):
        opened(tmp_path / "t.feather").rows()


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_cut_off_anywhere_never_gives_rows(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = written(folder, how)
    content = path.read_bytes()

    @settings(max_examples=40)
    @given(st.integers(0, len(content) - 1))
    def cut_off(length: int) -> None:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=path.name):
            list(opened(path).read(0, ROWS, TABLE.column_names))

    cut_off()


@pytest.mark.parametrize("how", WRITERS)
def test_flipped_bits_anywhere_raise_nothing_but_data_error(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = written(folder, how)
    content = path.read_bytes()

    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 7)), min_size=1, max_size=3))
    def flip(bits: list[tuple[int, int]]) -> None:
        broken = bytearray(content)
        for place, bit in bits:
            broken[place] ^= 1 << bit
        path.write_bytes(broken)
        reader = opened(path)
        with contextlib.suppress(DataError):
            counts = [len(batch["number"]) for batch in reader.read(0, reader.rows(), ["number", "text", "pixels", "kind", "a"])]
            assert sum(counts) == reader.rows()

    flip()


def test_checksums_of_pages_are_compared_where_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet(path, pa.table({"n": range(1000)}), write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1  # in the numbers
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet: .*CRC"):
        list(opened(path).read(0, 1000, ["n"]))


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_elsewhere_is_read_alike(tmp_path: Path, how: str) -> None:
    import fsspec

    path = written(tmp_path, how)
    uri = f"memory://columnar/{how.replace(' ', '-')}/{path.name}"
    with fsspec.open(uri, "wb") as file:
        file.write(path.read_bytes())
    reader = (Parquet if how == "parquet" else Arrow)(File(uri, path.name))
    assert reader.rows() == ROWS
    assert list(reader.starts()) == ([0] if "stream" in how else [0, 300, 600, 900])
    assert read(reader, 250, 950, ["text", "number"]) == TABLE.slice(250, 700).select(["text", "number"]).to_pydict()
