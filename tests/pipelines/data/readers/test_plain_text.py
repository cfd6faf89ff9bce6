"""Plain text is read line for line as it was written, and what is not UTF-8 is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File
from pipelines.data.readers import parse_cache
from pipelines.data.readers.plain_text import PlainText
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
