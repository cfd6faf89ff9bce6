"""A line is a row: plain text as it was written, JSON lines as json.loads reads each; lines that are no rows are named or left out."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File
from pipelines.data.readers import parse_cache
from pipelines.data.readers.lines import JsonLines, PlainText
from workloads.base import DataError

ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\r", "\u2028", "\x0b", "\x85", "", "\x00\n"])


def text(folder: Path, content: bytes, name: str = "t.txt", *, skip: bool = False) -> PlainText:
    (folder / name).write_bytes(content)
    return PlainText(File(str(folder / name), name), folder, skip)


def lines(reader: PlainText) -> list[str]:
    return [line for batch in reader.read(0, reader.rows(), ["text"]) for line in batch["text"]]


def test_a_text_is_its_lines_with_their_ends(tmp_path: Path) -> None:
    content = "first\n\n third\r\nlast without an end"
    reader = text(tmp_path, content.encode())
    assert reader.columns() == ("text",)
    assert lines(reader) == ["first\n", "\n", " third\r\n", "last without an end"]
    assert reader.place(2) == "t.txt, row 2"


@settings(max_examples=60)
@given(
    content=st.lists(st.tuples(st.text(max_size=20), ENDS), min_size=1).map(lambda found: "".join(a + b for a, b in found)),
    block=st.sampled_from([1, 7, 64]),
    packed=st.booleans(),
)
def test_only_a_line_feed_ends_a_line(tmp_path_factory: pytest.TempPathFactory, content: str, block: int, packed: bool) -> None:
    folder, raw = tmp_path_factory.mktemp("text"), content.encode()
    if not raw:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        found = lines(text(folder, gzip.compress(raw) if packed else raw, "t.txt.gz" if packed else "t.txt"))
    assert "".join(found) == content
    expected = raw.split(b"\n")
    assert [line.encode() for line in found] == [line + b"\n" for line in expected[:-1]] + [expected[-1]] * bool(expected[-1])


@settings(max_examples=60)
@given(
    good=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=10), max_size=20),
    bad=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from([b"\xff", b"ab\xc3(", b"caf\xe9", b"\xed\xa0\x80"])), min_size=1, max_size=15
    ),
    block=st.sampled_from([1, 7, 64, 1 << 20]),
)
def test_lines_that_are_not_utf8_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, good: list[str], bad: list[tuple[int, bytes]], block: int
) -> None:
    every: list[bytes] = [f"{line}\n".encode() for line in good]
    for place, line in bad:
        every.insert(place, line + b"\n")
    folder, content = tmp_path_factory.mktemp("text"), b"".join(every)
    numbers = [number for number, line in enumerate(every) if line[:-1] in {line for _, line in bad}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        reader = text(folder, content, skip=True)
        assert lines(reader) == [f"{line}\n" for line in good]
    assert reader.skipped().count == len(bad)
    assert reader.rows() + reader.skipped().count == len(every)
    assert [reader.place(row) for row in range(len(good))] == [f"t.txt, row {n}" for n in range(len(every)) if n not in numbers]
    assert [sentence.partition(":")[0] for sentence in reader.skipped().examples] == [f"t.txt, row {number}" for number in numbers[:10]]
    with pytest.raises(DataError) as told:
        text(folder, content).rows()
    with pytest.raises(UnicodeDecodeError) as expected:
        content.decode()
    assert str(told.value) == f"t.txt, row {numbers[0]}: not UTF-8 at byte {expected.value.start} of the file"


def test_a_line_too_long_to_be_a_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_cache, "BLOCK_BYTES", 10)
    monkeypatch.setattr(parse_cache, "LONGEST_ROW_BYTES", 100)
    with pytest.raises(DataError, match=r"t\.txt: has a line of more than 100 bytes"):
        text(tmp_path, b"a\n" + b"b" * 200).rows()


# ---- JSON lines

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10), st.sampled_from(["2020-01-31", "2020-01-31T10:00:00Z", "NA", ""])
)
WHOLE = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3))
FLOAT = st.one_of(st.floats(allow_nan=False), st.sampled_from([math.inf, 5e-324, 1e308]))
COLUMNS = {
    "whole": WHOLE,
    "number": st.one_of(st.integers(-(2**40), 2**40), FLOAT),
    "text": TEXT,
    "flag": st.booleans(),
    "words": st.lists(TEXT, max_size=3),
    "place": st.fixed_dictionaries({}, optional={"x": WHOLE, "y": TEXT}),
    'ünï "q"': st.one_of(TEXT),
}
OBJECTS = st.fixed_dictionaries({}, optional={name: st.one_of(st.none(), values) for name, values in COLUMNS.items()})


def reader_of(folder: Path, content: bytes, name: str = "t.jsonl", *, skip: bool = False) -> JsonLines:
    (folder / name).write_bytes(content)
    return JsonLines(File(str(folder / name), name), folder, skip)


def values(reader: JsonLines) -> dict[str, list]:
    batches = list(reader.read(0, reader.rows(), reader.columns()))
    return {name: [value for batch in batches for value in batch[name].tolist()] for name in reader.columns()}


def plain(value: Any) -> Any:
    """A value as both ways of reading give it: no NaN, no keys that hold nothing."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if plain(inner) is not None}
    return None if isinstance(value, float) and math.isnan(value) else value


def as_lines(rows: list[dict], ascii_only: bool = False) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=ascii_only).encode() for row in rows]


@settings(max_examples=60)
@given(rows=st.lists(OBJECTS, max_size=15), block=st.sampled_from([1, 100, 1 << 20]), ascii_only=st.booleans(), packed=st.booleans())
def test_rows_are_read_as_json_loads_reads_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], block: int, ascii_only: bool, packed: bool
) -> None:
    rows = [*rows, {"whole": 1, "text": "last"}]
    content = b"\n\n".join(as_lines(rows, ascii_only))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        name = "t.jsonl.gz" if packed else "t.jsonl"
        reader = reader_of(tmp_path_factory.mktemp("lines"), gzip.compress(content) if packed else content, name)
        found = values(reader)
    assert set(reader.columns()) == {name for row in rows for name in row}
    assert list(reader.columns()) == list(dict.fromkeys(name for row in rows for name in row))
    for name in reader.columns():
        expected = [row.get(name) for row in rows]
        if name == "whole" and None in expected:  # numpy has no gaps in integers
            expected = [value if value is None else float(value) for value in expected]
        assert [plain(value) for value in found[name]] == [plain(value) for value in expected]


def test_a_table_is_read_as_pandas_wrote_it(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a", "two\nlines", "ü"], "stars": [1, 2, 3], "score": [0.5, None, 2.0]})
    reader = reader_of(tmp_path, table.to_json(orient="records", lines=True).encode())
    (raw,) = reader.read(0, 3, ["stars", "score", "text"])
    np.testing.assert_array_equal(raw["stars"], [1, 2, 3])
    np.testing.assert_array_equal(raw["score"], [0.5, np.nan, 2.0])
    assert raw["text"].tolist() == table["text"].tolist()


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(-9, 9), TEXT), min_size=1, max_size=15), block=st.sampled_from([1, 60, 1 << 20]), data=st.data())
def test_lines_that_are_no_rows_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]], block: int, data: st.DataObject
) -> None:
    kinds = {
        b'{"a":1,"b"': "is no JSON object",
        b"[1, 2]": "is no JSON object",
        b"3": "is no JSON object",
        b"null": "is no JSON object",
        b"{'a':1}": "is no JSON object",
        b'{"a":1}{"a":2}': "is no JSON object: Extra data",
        b'{"a":1,"b":"x","a":2}': "is no JSON object: has the key 'a' twice",
        b'{"a":1,"b":"caf\xe9"}': "is not UTF-8 at byte 15 of the line",
        b'{"a":"one","b":"x"}': "holds string in 'a', but the rows before hold int64",
        b'{"b":["x"]}': "holds list<item: string> in 'b', but the rows before hold string",
        b'{"a":true}': "holds bool in 'a', but the rows before hold int64",
        b'{"b":"\\ud800"}': "cannot be read: JSON parse error: The surrogate pair in string is invalid",
        b'{"a":1e999}': "cannot be read: JSON parse error: Number too big",
        b'{"c":' + b"[" * 40 + b"]" * 40 + b"}": "cannot be read: is nested deeper than 32 levels",
    }
    every = as_lines([{"a": 0, "b": "first"}, *({"a": number, "b": text} for number, text in rows)])
    good, told = list(every), dict[bytes, str]()
    for line in data.draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=12)):
        every.insert(data.draw(st.integers(1, len(every))), line)
        told[line] = kinds[line]
    numbers = [number for number, line in enumerate(every) if line in told]
    folder, content = tmp_path_factory.mktemp("lines"), b"\n".join(every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse_cache, "BLOCK_BYTES", block)
        reader = reader_of(folder, content, skip=True)
        assert values(reader) == {name: [json.loads(line)[name] for line in good] for name in ("a", "b")}
        with pytest.raises(DataError) as error:
            reader_of(folder, content).rows()
    assert reader.rows() + reader.skipped().count == len(every)
    assert [reader.place(row) for row in range(len(good))] == [f"t.jsonl, row {n}" for n in range(len(every)) if n not in numbers]
    expected = [f"t.jsonl, row {number}: {told[every[number]]}" for number in numbers[:10]]
    assert all(one.startswith(other) for one, other in zip(reader.skipped().examples, expected, strict=True))
    assert str(error.value).startswith(expected[0])


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("content", [b'{"a":\n1}\n{"b":2}', b'{"a":1}{"a":2}\n{"a":\n3}\n{"b":2}', b'{"a":1}\r{"a":2}\n{"b":2}'])
def test_a_row_is_a_line_and_a_line_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int) -> None:
    monkeypatch.setattr(parse_cache, "BLOCK_BYTES", block)
    reader = reader_of(tmp_path, content, skip=True)
    assert values(reader) == {"b": [2]}
    assert reader.skipped().count == content.count(b"\n")


@pytest.mark.parametrize("content", [b"\n \n", b"{}\n{}\n"])
def test_a_file_without_a_value_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl: holds no rows that can be read"):
        reader_of(tmp_path, content).rows()


def test_empty_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, b'\xef\xbb\xbf\n{"a":1}\n\r\n  \n{"a":2}\r\n')
    assert (values(reader), reader.place(1)) == ({"a": [1, 2]}, "t.jsonl, row 1")


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_integers_become_floats_where_the_column_has_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(parse_cache, "BLOCK_BYTES", block)
    reader = reader_of(tmp_path, b'{"a":1,"b":[1]}\n{"a":2.5,"b":[0.5]}\n{"a":NaN,"b":[-Infinity]}\n{"a":12345678901234567890,"b":[1]}\n')
    np.testing.assert_array_equal(values(reader)["a"], [1.0, 2.5, np.nan, 12345678901234567890.0])
    np.testing.assert_array_equal(values(reader)["b"], [[1.0], [0.5], [-np.inf], [1.0]])


def test_a_column_of_nothing_is_missing_everywhere(tmp_path: Path) -> None:
    assert pd.isna(values(reader_of(tmp_path, b'{"a":null,"b":1}\n{"b":2}\n'))["a"]).all()


def test_a_line_with_many_brackets_is_not_a_deep_one(tmp_path: Path) -> None:
    content = json.dumps({"a": [[number] for number in range(20000)]}).encode()
    assert values(reader_of(tmp_path, content)) == {"a": [[[number] for number in range(20000)]]}


@pytest.mark.parametrize(
    ("inside", "sentence"), [(b"[" * 200_000 + b"]" * 200_000, "is nested too deep"), (b"[]," * 20_000, "is no JSON object")]
)
def test_a_line_that_would_crash_the_parser_is_named(tmp_path: Path, inside: bytes, sentence: str) -> None:
    content = b'{"a":[1]}\n{"a":' + inside + b'}\n{"a":[2]}'
    reader = reader_of(tmp_path, content, skip=True)
    assert [value.tolist() for batch in reader.read(0, 2, ["a"]) for value in batch["a"]] == [[1], [2]]
    with pytest.raises(DataError, match=rf"t\.jsonl, row 1: {sentence}"):
        reader_of(tmp_path, content).rows()
