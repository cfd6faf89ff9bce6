"""A table's paths become what the files hold; a table cannot name what lies elsewhere."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.readers.path_columns import Opened
from pipelines.data.source import Skipped, batches_of, even_starts, joined
from workloads.base import Arrays, DataError


@dataclass(frozen=True)
class Table:
    """A source of the rows given."""

    image: tuple[object, ...]
    dense: np.ndarray | None = None
    label: str = "table"

    def identity(self) -> dict[str, str]:
        return {"table": str(len(self.image))}

    def columns(self) -> tuple[str, ...]:
        return ("image", "label")

    def rows(self) -> int:
        return len(self.image)

    def starts(self) -> Sequence[int]:
        return even_starts(self.rows())

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        image = np.empty(len(self.image), dtype=object)
        image[:] = self.image
        made = {"image": image if self.dense is None else self.dense, "label": np.arange(len(self.image))}
        return batches_of({name: made[name] for name in columns}, start, stop)

    def skipped(self) -> Skipped:
        return Skipped(2, ("a", "b"))

    def place(self, row: int) -> str:
        return f"table, row {row}"


def opened(folder: Path | str, *image: object) -> Opened:
    return Opened(Table(image), ("image",), str(folder))


def read(source: Opened) -> list[object]:
    return list(joined(list(source.read(0, source.rows(), ["image", "label"])))["image"])


def test_paths_become_the_bytes_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = [f"deep/{number}.png" for number in range(150)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    source = pickle.loads(pickle.dumps(opened(tmp_path, *names)))  # noqa: S301
    batches = list(source.read(10, 150, ["label", "image"]))
    assert max(len(batch["image"]) for batch in batches) <= 64
    raw = joined(batches)
    assert raw["image"].tolist() == [name.encode() for name in names[10:]]
    assert raw["label"].tolist() == list(range(10, 150))


def test_what_is_no_path_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"A")
    picture, error = np.zeros((2, 2)), DataError("unreadable")
    values = read(opened(tmp_path, b"bytes", "a", None, picture, error))
    assert values[:3] == [b"bytes", b"A", None]
    assert values[3] is picture
    assert values[4] is error


def test_a_column_of_arrays_passes_untouched(tmp_path: Path) -> None:
    dense = np.zeros((3, 2, 2), np.uint8)
    (batch,) = Opened(Table((0, 0, 0), dense), ("image",), str(tmp_path)).read(0, 3, ["image"])
    assert np.shares_memory(batch["image"], dense)


def test_a_column_of_text_that_is_not_meant_as_paths_passes_untouched(tmp_path: Path) -> None:
    assert read(Opened(Table(("a", "b")), ("other",), str(tmp_path))) == ["a", "b"]


def test_a_column_of_fixed_text_is_opened_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"A")
    assert read(Opened(Table((0,), np.array(["a"])), ("image",), str(tmp_path))) == [b"A"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "a/../../secret", "..", "~/x", "file:///etc/passwd", "", ".", "%2e%2e/secret"]
)
def test_a_path_that_leads_out_of_the_folder_is_an_error_in_its_row(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "a").write_bytes(b"A")
    good, bad = read(opened(tmp_path / "table", "a", path))
    assert good == b"A"
    assert isinstance(bad, DataError)
    assert str(bad) == f"{path!r} names no file below the table's folder: paths are relative to it"


def test_a_path_that_stays_in_the_folder_and_a_link_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"linked")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "a").write_bytes(b"A")
    (tmp_path / "table" / "link").symlink_to(tmp_path / "elsewhere")
    assert read(opened(tmp_path / "table", "./a", "b/../a", "link")) == [b"A", b"A", b"linked"]


@settings(max_examples=60)
@given(
    path=st.lists(st.sampled_from(["..", ".", "a", "b", "/", "", "~", "%2e%2e", "%2F"]), max_size=6).map("/".join) | st.text(max_size=12)
)
def test_no_path_whatever_reads_outside_the_folder(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    root = tmp_path_factory.getbasetemp() / "outside"
    (root / "table" / "b").mkdir(parents=True, exist_ok=True)
    for name in ("a", "table/a", "table/b/a"):
        (root / name).write_bytes(name.encode())
    (value,) = read(opened(root / "table", path))
    inside = os.path.normpath(root / "table" / path) if "\0" not in path else ""
    assert isinstance(value, DataError) or (value in (b"table/a", b"table/b/a") and value == Path(inside).read_bytes())


@pytest.mark.parametrize("path", ["none.png", "folder", "a\0b", "\udc80", "x" * 300])
def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (value,) = read(opened(tmp_path, path))
    assert isinstance(value, DataError)
    assert str(value).startswith(f"{path}: cannot be ")


def test_files_beside_a_table_elsewhere_are_read_there() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/tables/deep/1.png", b"one")
    good, options, missing = read(opened("memory://tables/", "deep/1.png", "deep/1.png?endpoint_override=evil", "deep/2.png"))
    assert good == b"one"
    assert str(options) == "'deep/1.png?endpoint_override=evil': a path on memory:// has neither ? nor #"
    assert isinstance(missing, DataError)


def test_the_identity_changes_with_a_file_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"A")
    source = opened(tmp_path, "a", "gone")
    first = source.identity()
    assert first == source.identity() == {"table": "2", "files of column image": first["files of column image"]}
    (tmp_path / "a").write_bytes(b"AA")
    assert source.identity() != first
    (tmp_path / "a").unlink()
    assert source.identity() != first


def test_the_identity_of_a_table_of_bytes_is_the_tables_own(tmp_path: Path) -> None:
    assert opened(tmp_path, b"A", b"B").identity() == {"table": "2"}


def test_all_else_is_as_the_table_says(tmp_path: Path) -> None:
    source, table = opened(tmp_path, "a", "b"), Table(("a", "b"))
    assert (source.label, source.columns(), source.rows()) == ("table", ("image", "label"), 2)
    assert (list(source.starts()), source.skipped(), source.place(1)) == (list(table.starts()), Skipped(2, ("a", "b")), "table, row 1")
