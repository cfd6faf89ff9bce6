"""A parsed file is made once, never believed when damaged, and never mixes two versions of what it was made from."""

from __future__ import annotations

import gzip
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File, find
from pipelines.data.readers.delimited import Delimited
from pipelines.data.readers.lines import JsonLines, PlainText
from pipelines.data.readers.parse_cache import Parsed, in_file
from pipelines.data.source import BATCH_ROWS
from pipelines.errors import StorageError
from workloads.base import DataError

ROWS = 2 * BATCH_ROWS + 5
CONTENT = "".join(f"line {number}\n" for number in range(ROWS))


def text(folder: Path, content: bytes, name: str = "t.txt", *, skip: bool = False) -> PlainText:
    (folder / name).write_bytes(content)
    return PlainText(File(str(folder / name), name), folder / "scratch", skip)


def lines(reader: Parsed) -> list[str]:
    return [line for batch in reader.read(0, reader.rows(), ["text"]) for line in batch["text"]]


def cached_file(folder: Path) -> Path:
    (found,) = (folder / "scratch" / ".parsed").glob("*.arrow")
    return found


@pytest.mark.parametrize(("start", "stop"), [(0, ROWS), (1, 3), (2, 2), (BATCH_ROWS - 1, BATCH_ROWS + 1), (ROWS - 1, ROWS)])
def test_any_range_is_read_in_batches_of_few_rows(tmp_path: Path, start: int, stop: int) -> None:
    reader = text(tmp_path, CONTENT.encode())
    batches = [batch["text"].tolist() for batch in reader.read(start, stop, ["text"])]
    assert [line for batch in batches for line in batch] == CONTENT.splitlines(keepends=True)[start:stop]
    assert all(0 < len(batch) <= BATCH_ROWS for batch in batches)


def test_reading_may_start_at_each_batch(tmp_path: Path) -> None:
    assert list(text(tmp_path, CONTENT.encode()).starts()) == [0, BATCH_ROWS, 2 * BATCH_ROWS]


def test_a_file_is_parsed_once_for_all_processes(tmp_path: Path) -> None:
    reader = text(tmp_path, b"a\nb\n")
    assert lines(reader) == ["a\n", "b\n"]
    before = cached_file(tmp_path).stat()
    for again in (PlainText(reader.file, reader.scratch), pickle.loads(pickle.dumps(reader))):  # noqa: S301
        assert lines(again) == ["a\n", "b\n"]
    after = cached_file(tmp_path).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_nothing_is_left_but_the_cached_file_and_its_card(tmp_path: Path) -> None:
    for name, kind in (("t.csv", Delimited), ("t.jsonl", JsonLines), ("t.txt", PlainText)):
        (tmp_path / name).write_text('{"a":1}\n')
        kind(File(str(tmp_path / name), name), tmp_path / "scratch").rows()
    left = sorted(path.suffix for path in (tmp_path / "scratch" / ".parsed").iterdir())
    assert left == [".arrow"] * 3 + [".json"] * 3 + [".proof"] * 3


def test_nothing_is_kept_of_a_file_that_cannot_be_parsed(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        text(tmp_path, b"good\n\xff\n").rows()
    assert not list((tmp_path / "scratch" / ".parsed").iterdir())


def test_those_who_parse_at_once_end_with_the_same(tmp_path: Path) -> None:
    reader = text(tmp_path, CONTENT.encode())
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: lines(PlainText(reader.file, reader.scratch)), range(4)))
    assert all(part == CONTENT.splitlines(keepends=True) for part in found)
    assert len(list((tmp_path / "scratch" / ".parsed").iterdir())) == 3


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans(), card=st.booleans(), opened=st.booleans())
def test_a_damaged_cached_file_is_made_anew(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool, card: bool, opened: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = "".join(f"line {number}\n" for number in range(20))
    reader = text(folder, content.encode() + b"\xff\n", skip=True)
    assert reader.rows() == 20
    path = cached_file(folder).with_suffix(".json") if card else cached_file(folder)
    damaged = bytearray(path.read_bytes())
    damaged[int(where * len(damaged))] ^= 1 << bit
    path.unlink()  # a new inode: what is mapped stays as it is
    path.write_bytes(damaged[: int(where * len(damaged))] if cut else damaged)
    again = reader if opened else PlainText(reader.file, reader.scratch, True)
    assert lines(again) == content.splitlines(keepends=True)
    assert again.skipped().examples == ("t.txt, row 20: not UTF-8 at byte 150 of the file",)


def test_a_cached_file_that_was_deleted_is_made_anew(tmp_path: Path) -> None:
    reader = text(tmp_path, b"a\nb\n")
    assert reader.rows() == 2
    cached_file(tmp_path).unlink()
    assert lines(reader) == ["a\n", "b\n"]


def test_a_file_that_changes_is_parsed_anew_but_not_under_a_plan_that_was_made(tmp_path: Path) -> None:
    reader = text(tmp_path, b"a\nb\n")
    assert reader.rows() == 2
    changed = text(tmp_path, b"cc\n")
    assert lines(changed) == ["cc\n"]
    for planned in (reader, pickle.loads(pickle.dumps(reader))):  # noqa: S301
        with pytest.raises(DataError, match=r"t\.txt: has changed since its rows were counted"):
            lines(planned)


def test_a_file_of_the_same_size_and_a_later_time_is_another(tmp_path: Path) -> None:
    assert lines(text(tmp_path, b"a\n")) == ["a\n"]
    changed = text(tmp_path, b"b\n")
    os.utime(tmp_path / "t.txt", (time.time() + 5, time.time() + 5))
    assert lines(changed) == ["b\n"]


def test_a_file_that_disappears_is_told(tmp_path: Path) -> None:
    reader = text(tmp_path, b"a\n")
    assert reader.rows() == 1
    (tmp_path / "t.txt").unlink()
    with pytest.raises(DataError, match=r"t\.txt: there is no such file any more"):
        lines(reader)


def test_rows_and_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    reader = text(tmp_path, b"a\n")
    with pytest.raises(DataError, match=r"t\.txt: there is no column 'label'; columns: text"):
        next(reader.read(0, 1, ["label"]))
    with pytest.raises(DataError, match=r"t\.txt: has 1 rows, but row 1 was asked for"):
        next(reader.read(0, 2, ["text"]))


def test_a_scratch_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    reader = text(tmp_path, b"a\n")
    (tmp_path / "scratch").write_text("a file")
    with pytest.raises(StorageError, match=r"scratch/\.parsed cannot be written"):
        reader.rows()


@pytest.mark.parametrize("kind", [Delimited, JsonLines, PlainText])
def test_an_empty_file_is_refused(tmp_path: Path, kind: type[Parsed]) -> None:
    for name, content in (("t.any", b""), ("t.any.gz", b""), ("u.any.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: is empty"):
            kind(File(str(tmp_path / name), name), tmp_path).rows()


@pytest.mark.parametrize("kind", [Delimited, JsonLines, PlainText])
@settings(max_examples=40)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_gzip_is_refused_or_read_as_it_was(
    kind: type[Parsed], tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = "".join(f'{{"a":{number % 7}}}\n' for number in range(300)).encode()
    packed = bytearray(gzip.compress(content, mtime=0))
    (folder / "whole.gz").write_bytes(packed)
    packed[int(where * len(packed))] ^= 1 << bit
    (folder / "damaged.gz").write_bytes(packed[: int(where * len(packed))] if cut else packed)
    whole, damaged = (kind(File(str(folder / name), name), folder, True) for name in ("whole.gz", "damaged.gz"))
    try:
        found = list(damaged.read(0, damaged.rows(), damaged.columns()))
    except DataError as error:
        assert "damaged.gz: " in str(error)  # noqa: PT017
    else:
        expected = list(whole.read(0, whole.rows(), whole.columns()))
        assert [{name: values.tolist() for name, values in batch.items()} for batch in found] == [
            {name: values.tolist() for name, values in batch.items()} for batch in expected
        ]


def test_a_file_elsewhere_is_read_like_one_here(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/parsed/t.csv.gz", gzip.compress(b"a,b\n1,x\n2,y\n"))
    (file,) = find("memory://parsed/t.csv.gz")
    reader = Delimited(file, tmp_path)
    assert [batch["b"].tolist() for batch in reader.read(0, reader.rows(), ["b"])] == [["x", "y"]]
    fsspec.filesystem("memory").pipe("/parsed/t.csv.gz", gzip.compress(b"a,b\n1,x\n2,y\n3,z\n"))
    assert Delimited(file, tmp_path).rows() == 3


@given(st.sets(st.integers(0, 30)))
def test_a_row_is_told_as_the_file_counts_it(skipped: set[int]) -> None:
    kept = [row for row in range(40) if row not in skipped]
    assert [in_file(number, sorted(skipped)) for number in range(len(kept))] == kept
