"""Files are found and told apart by their content, on this machine and in an object store (a real S3 server on loopback)."""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines.data.files import File, find, is_folder, shown
from pipelines.data.readers.columnar import Arrow, Parquet
from pipelines.data.readers.planned import Files, identity
from pipelines.data.source import joined
from tests.s3 import s3  # noqa: F401
from workloads.base import DataError


def names(text: str) -> list[str]:
    return [file.name for file in find(text)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "a.txt", "below/c.csv", "below/deeper/d.csv", ".hidden.csv", "_SUCCESS", ".git/e.csv", "below/_x/f.csv"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "data"


# ---- finding


def test_a_path_is_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(f"{folder}/a.csv") == (File(f"{folder}/a.csv", "a.csv"),)
    monkeypatch.chdir(folder)
    assert find("below/c.csv") == (File(f"{folder}/below/c.csv", "c.csv"),)
    monkeypatch.setenv("HOME", str(folder))
    assert find("~/a.csv") == (File(f"{folder}/a.csv", "a.csv"),)


def test_a_glob_is_what_matches_in_the_order_of_names(folder: Path) -> None:
    assert names(f"{folder}/*.csv") == ["a.csv", "b.csv"]
    assert names(f"{folder}/a.*") == ["a.csv", "a.txt"]
    assert names(f"{folder}/[a]*.cs?") == ["a.csv"]
    assert names(f"{folder}/**/*.csv") == ["a.csv", "b.csv", "below/c.csv", "below/deeper/d.csv"]
    assert names(f"{folder}/*/c.csv") == ["below/c.csv"]


def test_a_folder_is_all_below_it_but_what_is_hidden(folder: Path) -> None:
    assert names(str(folder)) == names(f"{folder}/") == ["a.csv", "a.txt", "b.csv", "below/c.csv", "below/deeper/d.csv"]


def test_a_hidden_folder_above_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".cache" / "a.csv"
    path.parent.mkdir()
    path.write_text("")
    assert names(str(path)) == names(str(path.parent)) == names(f"{path.parent}/*.csv") == ["a.csv"]


def test_folders_are_told_from_files(folder: Path) -> None:
    assert is_folder(str(folder))
    assert not is_folder(f"{folder}/a.csv")
    assert not is_folder(f"{folder}/nothing")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nothing.csv", "nothing.csv: there is no such file"),
        ("*.parquet", r"\*.parquet: there is no such file"),
        ("nowhere/*.csv", r"nowhere/\*.csv: there is no such file"),
        ("nope://a/b.csv", "nope://: no such filesystem"),
        ("a\0b", "there is no such file|can be no path|cannot be reached"),
        ("~nobody-of-that-name/a.csv", "can be no path"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=problem):
        find(text)


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/a.csv", "s3://bucket/a.csv"),
        ("s3://bucket/a.csv?access_key=key&secret_key=secret", "s3://bucket/a.csv"),
        ("s3://bucket/a@b.csv", "s3://bucket/a@b.csv"),
        ("data/a.csv", "data/a.csv"),
    ],
)
def test_credentials_are_not_shown(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_the_format_is_told_by_the_ending_before_gz() -> None:
    assert File("/x/A.CSV.GZ", "A.CSV.GZ").suffix == ".csv"
    assert File("/x/a.b/readme", "a.b/readme").suffix == ""


# ---- reading


def test_a_stream_is_unpacked_and_an_opened_file_is_as_it_is(tmp_path: Path) -> None:
    packed = gzip.compress(b"content")
    (tmp_path / "a.txt.gz").write_bytes(packed)
    (file,) = find(f"{tmp_path}/a.txt.gz")
    with file.stream() as stream, file.open() as opened:
        assert (stream.read(), opened.read()) == (b"content", packed)
    assert file.size() == len(packed)


def test_a_file_that_disappears_is_told(folder: Path) -> None:
    (file,) = find(f"{folder}/a.csv")
    Path(file.uri).unlink()
    for use in (file.open, file.stream, file.size, file.version):
        with pytest.raises(DataError, match=r"^a\.csv: "):
            use()


# ---- elsewhere


def test_any_filesystem_of_fsspec_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        with fsspec.open(f"memory://files/{name}", "w") as written:
            written.write(name)
    found = find("memory://files/*.txt")
    assert [file.name for file in found] == ["a.txt", "b.txt"]
    assert found[0].local is None
    with found[1].open() as opened:
        assert opened.read() == b"b.txt"
    first = identity(found, tmp_path)
    with fsspec.open("memory://files/a.txt", "w") as written:
        written.write("c.txt")
    assert identity(found, tmp_path) != first


def parquet(start: int, stop: int) -> bytes:
    content = io.BytesIO()
    pa.parquet.write_table(pa.table({"n": range(start, stop)}), content, row_group_size=50)
    return content.getvalue()


@pytest.fixture
def bucket(s3: Any) -> Any:  # noqa: F811
    """`put(key, content)` into a fresh bucket called `data`."""
    s3.create_bucket(Bucket="data")
    yield lambda key, content: s3.put_object(Bucket="data", Key=key, Body=content)
    for item in s3.list_objects_v2(Bucket="data").get("Contents", []):
        s3.delete_object(Bucket="data", Key=item["Key"])
    s3.delete_bucket(Bucket="data")


def test_parquet_in_an_object_store_is_read_by_glob(bucket: Any, tmp_path: Path) -> None:
    bucket("set/1.parquet", parquet(0, 120))
    bucket("set/2.parquet", parquet(120, 200))
    bucket("set/_metadata", b"")
    found = find("s3://data/set/*.parquet")
    assert [(file.uri, file.name) for file in found] == [("s3://data/set/1.parquet", "1.parquet"), ("s3://data/set/2.parquet", "2.parquet")]
    assert find("s3://data/set") == find("s3://data/set/**") == found
    assert is_folder("s3://data/set")
    source = Files("set", tuple(Parquet(file) for file in found), found, tmp_path)
    assert source.starts() == [0, 50, 100, 120, 170]
    assert joined(list(source.read(90, 150, ["n"])))["n"].tolist() == list(range(90, 150))


def test_arrow_in_an_object_store_is_read(bucket: Any) -> None:
    table, content = pa.table({"n": range(100)}), io.BytesIO()
    with pa.ipc.new_stream(content, table.schema) as writer:
        writer.write_table(table)
    bucket("a.arrow", content.getvalue())
    (file,) = find("s3://data/a.arrow")
    assert joined(list(Arrow(file).read(10, 20, ["n"])))["n"].tolist() == list(range(10, 20))


@pytest.mark.parametrize("key", ["a.txt", "a.txt.gz"])
def test_the_entity_tag_is_the_identity_and_changes_with_the_content(bucket: Any, tmp_path: Path, key: str) -> None:
    bucket(key, b"one")
    found = find(f"s3://data/{key}")
    first = identity(found, tmp_path)
    assert first == {key: f"etag {hashlib.md5(b'one', usedforsecurity=False).hexdigest()}"}
    bucket(key, b"two")  # of the same size, perhaps in the same second
    assert identity(found, tmp_path) != first
    bucket(key, b"one")
    assert identity(found, tmp_path) == first


def test_an_object_that_changes_between_plan_and_read_is_refused(bucket: Any) -> None:
    bucket("a.parquet", parquet(0, 120))
    (file,) = find("s3://data/a.parquet")
    reader = Parquet(file)
    assert reader.rows() == 120
    bucket("a.parquet", parquet(1, 121))
    with pytest.raises(DataError, match=r"a\.parquet: has changed since its rows were counted"):
        list(reader.read(0, 120, ["n"]))


def test_objects_of_any_name_are_found_and_read(bucket: Any) -> None:
    keys = ["odd/a b.txt", "odd/a#b.txt", "odd/a%20b.txt", "odd/a?b=c.txt", "odd/ü&+.txt"]
    for key in keys:
        bucket(key, key.encode())
    found = find("s3://data/odd")
    contents = []
    for file in found:
        with file.open() as opened:
            contents.append(opened.read().decode())
    assert sorted(contents) == sorted(keys)


@pytest.mark.parametrize("text", ["s3://data/no.csv", "s3://data/no/*.csv", "s3://no-such-bucket/a.csv", "s3://no-such-bucket/*.csv"])
def test_a_missing_bucket_or_object_is_told_by_name(bucket: Any, text: str) -> None:
    with pytest.raises(DataError) as caught:
        find(text)
    assert str(caught.value) == f"{text}: there is no such file"


def test_errors_of_an_object_store_hide_credentials(bucket: Any) -> None:
    bucket("a.txt", b"one")
    assert [file.name for file in find("s3://testing:hush@data/a.txt")] == ["a.txt"]
    for text in ("s3://testing:hush@data/b.txt", "s3://testing:hush@data/a?.txt"):
        with pytest.raises(DataError) as caught:
            find(text)
        assert "hush" not in str(caught.value)


def test_a_question_mark_is_no_wildcard_of_a_uri(bucket: Any) -> None:
    with pytest.raises(DataError, match=r"s3://data: what stands behind the question mark is no option of it \(as a wildcard use \*\)"):
        find("s3://data/?.txt")
