"""CSV and TSV are read as pyarrow and pandas read whole files, whatever the blocks; rows that cannot be read are named or left out."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File
from pipelines.data.readers import parse_cache
from pipelines.data.readers.delimited import Delimited
from pipelines.data.readers.planned import to_numpy
from workloads.base import DataError

TABLE = pd.DataFrame({"review": ["good, really", "two\nlines", "", "ünïcode"], "stars": [5, 1, 3, 4], "label": ["a", "b", "a", "b"]})
# what makes whole-file types hard: values that are of one type in one block, and of another in the next
VALUES = st.one_of(
    st.sampled_from(["", "NA", "nan", "null", "0", "1", "-5", " 7 ", "true", "False", "1.5", "1e300", "-inf", "0x1F", "007", "1_000"]),
    st.sampled_from(
        ["2020-01-31", "12:30", "12:30:59", "2020-01-31 12:30:59", "2020-01-31T12:30:59.123", "2020-01-31T12:30:59Z", "2020-02-30"]
    ),
    st.sampled_from(["9223372036854775807", "9223372036854775808", "-9223372036854775809", "0.1", "5e-324"]),
    st.sampled_from(["a", "ünï😀", "two\nlines", 'a "quote"', "a,b", "tab\tbed", "\r\n", "x\x00y", "\ufffd", "'"]),
)
KINDS = st.sampled_from(
    [["1", "0", "true", ""], ["1", "2.5", "NA"], ["", "NA"], ["2020-01-31", "2021-05-01 10:00:00", ""], ["7"], ["12:30", ""]]
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """Rows of values, the header first."""
    width, height = draw(st.integers(1, 3)), draw(st.integers(0, 25))
    columns = []
    for number in range(width):
        values = st.sampled_from(draw(KINDS)) if draw(st.booleans()) else VALUES
        columns.append([f"column {number}", *draw(st.lists(values, min_size=height, max_size=height))])
    return [list(row) for row in zip(*columns, strict=True)]


def as_csv(rows: list[list[str]], delimiter: str = ",") -> bytes:
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return sink.getvalue().encode()


def table(folder: Path, content: bytes, name: str = "t.csv", *, skip: bool = False) -> Delimited:
    (folder / name).write_bytes(content)
    return Delimited(File(str(folder / name), name), folder, skip)


def values(reader: Delimited) -> dict[str, list]:
    batches = list(reader.read(0, reader.rows(), reader.columns()))
    return {name: [value for batch in batches for value in batch[name].tolist()] for name in reader.columns()}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.CSV.gz", "t.tsv.gz"])
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3)])
def test_rows_are_read_as_they_were_written(tmp_path: Path, name: str, start: int, stop: int) -> None:
    content = TABLE.to_csv(index=False, sep="\t" if "tsv" in name else ",").encode()
    reader = table(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
    (raw,) = reader.read(start, stop, ["review", "stars"])
    assert reader.columns() == ("review", "stars", "label")
    assert reader.rows() == 4
    assert list(raw) == ["review", "stars"]
    assert raw["review"].tolist() == TABLE["review"].tolist()[start:stop]
    assert raw["stars"].tolist() == TABLE["stars"].tolist()[start:stop]


@settings(max_examples=60)
@given(rows=tables(), block=st.sampled_from([96, 200, 1 << 20]))
def test_a_column_has_the_type_that_the_whole_file_gives_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], block: int
) -> None:
    content = as_csv(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        reader = table(tmp_path_factory.mktemp("table"), content)
        assert reader.rows() == len(rows) - 1
    nul = "\ue000"  # pyarrow's own parser misreads the other (apache/arrow issue 50481)
    plain = pa.BufferReader(content.replace(b"\0", nul.encode()))
    expected = pa.csv.read_csv(plain, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
    assert reader.columns() == tuple(expected.column_names)
    for name in expected.column_names:
        whole = [value.replace(nul, "\0") if isinstance(value, str) else value for value in to_numpy(expected[name]).tolist()]
        assert_same(values(reader)[name], whole)


def assert_same(found: list, expected: list) -> None:
    """Equal, and missing where the other is: a batch without gaps has integers where the whole column has floats."""
    floats = any(isinstance(value, float) for value in expected)
    found = [float(value) if floats and isinstance(value, int) else value for value in found]
    assert [None if value != value else value for value in found] == [None if value != value else value for value in expected]


@settings(max_examples=60)
@given(
    values_of=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=15).filter(lambda text: "\r" not in text), min_size=1, max_size=30
    ),
    delimiter=st.sampled_from([",", "\t"]),
    block=st.sampled_from([150, 1 << 20]),
)
def test_any_text_is_read_as_pandas_reads_it(
    tmp_path_factory: pytest.TempPathFactory, values_of: list[str], delimiter: str, block: int
) -> None:
    rows = [["number", "text"], *([str(number), text + "."] for number, text in enumerate(values_of))]
    content = as_csv(rows, delimiter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        found = values(table(tmp_path_factory.mktemp("table"), content, "t.csv" if delimiter == "," else "t.tsv"))
    expected = pd.read_csv(io.BytesIO(content), sep=delimiter, keep_default_na=False)
    assert found == {"number": list(range(len(values_of))), "text": [text + "." for text in values_of]}
    if not any("\x00" in text for text in values_of):
        assert found["text"] == expected["text"].tolist()


GOOD = [f"{number},good {number}\n".encode() for number in range(30)]
RAGGED = {b"1\n": 1, b"1,2,3\n": 3, b"\xff\n": 1, b"1,\xff,3\n": 3, b'"a\nb",2,"3"\n': 3}
NOT_UTF8 = [b"5,caf\xe9\n", b'"5","\xff\xfe\n"\n', b"5,\xed\xa0\x80\n"]


@settings(max_examples=60)
@given(
    bad=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([*RAGGED, *NOT_UTF8])), min_size=1, max_size=15),
    blank=st.lists(st.integers(0, 50), max_size=5),
    block=st.sampled_from([96, 150, 1 << 20]),
)
def test_rows_that_cannot_be_read_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, bad: list[tuple[int, bytes]], blank: list[int], block: int
) -> None:
    every = list(GOOD)
    for place, row in bad:
        every.insert(place, row)
    numbers = [number for number, row in enumerate(every) if row not in GOOD]
    shown = list(every)
    for place in blank:  # no rows
        shown.insert(place, b"\n")
    folder, content = tmp_path_factory.mktemp("table"), b"a,b\n" + b"".join(shown)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        reader = table(folder, content, skip=True)
        assert values(reader) == {"a": list(range(30)), "b": [f"good {number}" for number in range(30)]}
        told = [
            f"t.csv, row {number}: "
            + (
                f"has {RAGGED[every[number]]} value{'s' * (RAGGED[every[number]] != 1)}, but the header has 2"
                if every[number] in RAGGED
                else "its column 'b' is not UTF-8"
            )
            for number in numbers
        ]
        assert reader.skipped().examples == tuple(told[:10])
        assert reader.rows() + reader.skipped().count == len(every)
        assert [reader.place(row) for row in range(30)] == [f"t.csv, row {n}" for n in range(len(every)) if n not in numbers]
        with pytest.raises(DataError) as error:
            table(folder, content).rows()
    assert str(error.value) in told


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n\n", "t.csv: is empty"),
        (b"a,a\n1,2\n", "t.csv: has the column 'a' more than once"),
        (b"a,,\n1,2,3\n", "t.csv: has the column '' more than once"),
        (b"a,\xff\n1,2\n", "t.csv: its header is not UTF-8"),
        ("a,b\n1,ü\n".encode("utf-16"), "t.csv: its header is not UTF-8"),
        (b'a,b\n1,2\n3,"four\n5,6\n', "t.csv: cannot be read as a table: near its row 1: a quote that is never closed"),
        (b'a,b\n1,2\n3,"four', "t.csv: cannot be read as a table: near its row 1: a quote that is never closed"),
        (b'a,"b\n1,2\n', "t.csv: cannot be read as a table: near its header: .*a quote that is never closed"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, content: bytes, sentence: str, skip: bool) -> None:
    with pytest.raises(DataError, match=sentence):
        table(tmp_path, content, skip=skip).rows()


def test_a_row_longer_than_a_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_cache, "BLOCK_BYTES", 100)
    with pytest.raises(DataError, match=r"t\.csv: cannot be read as a table: near its row 1: a row of more than 100 bytes"):
        table(tmp_path, b"a,b\n1,2\n3," + b"x" * 1000 + b"\n").rows()


def test_an_unclosed_quote_does_not_swallow_rows_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_cache, "BLOCK_BYTES", 100)
    with pytest.raises(DataError, match="a quote that is never closed"):
        table(tmp_path, b'a,b\n1,2\n3,"4\n' + b"5,6\n" * 100).rows()


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert table(tmp_path, "a,b\n1,ü\n".encode("utf-8-sig")).columns() == ("a", "b")


def test_a_header_without_rows_is_a_table_without_rows(tmp_path: Path) -> None:
    reader = table(tmp_path, b"a,b\n")
    assert (reader.columns(), reader.rows(), list(reader.starts())) == (("a", "b"), 0, [0])
    assert not list(reader.read(0, 0, ["a"]))


def test_another_delimiter_makes_one_column(tmp_path: Path) -> None:
    assert values(table(tmp_path, b"a;b\n1;2\n")) == {"a;b": ["1;2"]}


def test_one_column_may_hold_empty_values_in_quotes(tmp_path: Path) -> None:
    assert values(table(tmp_path, b'a\nx\n""\n\ny')) == {"a": ["x", "", "y"]}


def test_a_column_of_nothing_is_missing_everywhere(tmp_path: Path) -> None:
    (raw,) = table(tmp_path, b"a,b\n1,\n2,NA\n").read(0, 2, ["b"])
    assert pd.isna(raw["b"]).all()


def test_numbers_with_gaps_come_as_floats_with_nan(tmp_path: Path) -> None:
    (raw,) = table(tmp_path, b"a,b\n1,x\n,y\n").read(0, 2, ["a"])
    np.testing.assert_array_equal(raw["a"], [1.0, np.nan])


def test_booleans_come_as_numbers(tmp_path: Path) -> None:
    (raw,) = table(tmp_path, b"a,b\ntrue,true\nfalse,\n").read(0, 2, ["a", "b"])
    assert raw["a"].dtype == np.int8
    np.testing.assert_array_equal(raw["a"], [1, 0])
    np.testing.assert_array_equal(raw["b"], [1.0, np.nan])


def test_a_nul_beside_a_quote_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_cache, "BLOCK_BYTES", 96)
    rows = [["a", "b", "c"], *([str(number), "x\0y" if number % 4 == 0 else "", "2020-01-31T12:30:59.123"] for number in range(40))]
    assert values(table(tmp_path, as_csv(rows)))["b"] == [row[1] for row in rows[1:]]
