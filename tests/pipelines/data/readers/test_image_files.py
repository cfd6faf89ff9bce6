"""A folder a class, and a table of paths: every picture a row, its bytes those on the disk; a table cannot name what lies elsewhere."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data.files import File, find
from pipelines.data.readers.image_files import ImageFolder, PathColumns, pictures_in
from pipelines.data.source import Skipped, batches_of, even_starts, joined
from workloads.base import Arrays, DataError


def drawn(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), shade).save(path)
    return path


def animals(folder: Path) -> Path:
    for number, name in enumerate(("dogs/2.png", "cats/b.JPG", "dogs/1.bmp", "cats/deep/a.gif")):
        drawn(folder / name, number)
    return folder


def reader(folder: Path) -> ImageFolder:
    return ImageFolder(pictures_in(find(str(folder))))


def test_every_picture_is_a_row_labelled_by_its_first_folder(tmp_path: Path) -> None:
    found = reader(animals(tmp_path))
    raw = joined(list(found.read(0, found.rows(), found.columns())))
    names = ["cats/b.JPG", "cats/deep/a.gif", "dogs/1.bmp", "dogs/2.png"]
    assert [found.place(row) for row in range(4)] == names
    assert raw["label"].tolist() == ["cats", "cats", "dogs", "dogs"]
    assert raw["image"].dtype == object
    assert raw["image"].tolist() == [(tmp_path / name).read_bytes() for name in names]


def test_other_files_and_pictures_beside_the_folders_are_passed_over(tmp_path: Path) -> None:
    drawn(animals(tmp_path) / "preview.png")
    for name in ("README.md", "cats/labels.csv", "cats/packed.png.gz", "cats/.hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    assert reader(tmp_path).rows() == ImageFolder(find(str(tmp_path))).rows() == 4


def test_a_folder_of_other_files_has_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert pictures_in(find(str(tmp_path))) == ()


def test_pictures_without_folders_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"^a\.png lies in no folder: a folder of pictures has a folder for each class"):
        reader(tmp_path).rows()
    with pytest.raises(DataError, match=r"^there is no picture: "):
        ImageFolder(()).rows()


def test_folders_that_are_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    for name in ("train/cats/1.png", "train/dogs/1.png", "val/cats/1.png"):
        drawn(tmp_path / name)
    with pytest.raises(DataError, match="the folders train, val are no classes but parts of the data"):
        reader(tmp_path).rows()
    assert reader(tmp_path / "train").rows() == 2


def test_any_range_can_be_read_alone_and_in_another_process(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 2}" / f"{number:03}.png").write_bytes(b"%d" % number)
    found = pickle.loads(pickle.dumps(reader(tmp_path)))  # noqa: S301
    whole = joined(list(found.read(0, 300, ["image"])))["image"]
    assert whole.tolist() == [b"%d" % number for number in (*range(0, 300, 2), *range(1, 300, 2))]
    batches = list(found.read(37, 290, ["image"]))
    assert max(len(batch["image"]) for batch in batches) <= 64
    assert joined(batches)["image"].tolist() == whole[37:290].tolist()
    assert list(found.starts()) == [0, 256]


def test_a_file_that_vanished_is_an_error_in_its_row_alone(tmp_path: Path) -> None:
    found = reader(animals(tmp_path))
    assert found.rows() == 4
    (tmp_path / "dogs/1.bmp").unlink()
    (image,) = (batch["image"] for batch in found.read(0, 4, ["image"]))
    assert [type(value) for value in image] == [bytes, bytes, DataError, bytes]
    assert found.place(2) == "dogs/1.bmp"
    assert str(image[2]).startswith("cannot be opened: ")
    assert str(pickle.loads(pickle.dumps(image[2]))) == str(image[2])  # noqa: S301


def test_a_folder_in_place_of_a_picture_is_an_error_in_its_row(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (value,) = next(ImageFolder((File(str(tmp_path / "cats"), "cats/1.png"),)).read(0, 1, ["image"]))["image"]
    assert isinstance(value, DataError)
    assert str(value).startswith("cannot be ")


def test_pictures_on_another_filesystem_are_read_as_those_on_this_machine() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("cats/1.png", "dogs/2.png"):
        memory.pipe(f"/zoo/{name}", name.encode())
    found = ImageFolder(pictures_in(find("memory://zoo")))
    raw = joined(list(found.read(0, 2, ["image", "label"])))
    assert raw["image"].tolist() == [b"cats/1.png", b"dogs/2.png"]
    assert raw["label"].tolist() == ["cats", "dogs"]


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    found = reader(animals(tmp_path))
    for path in tmp_path.rglob("*.*"):
        path.unlink()
    np.testing.assert_array_equal(next(found.read(1, 3, ["label"]))["label"], ["cats", "dogs"])


def test_without_labels_all_pictures_count_and_are_named(tmp_path):
    for name in ("b.png", "a.png", "deeper/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = ImageFolder(pictures_in(find(str(tmp_path))), labelled=False)
    assert (found.columns(), found.rows()) == (("image", "path"), 3)
    [batch] = found.read(0, 3, ["image", "path"])
    assert batch["path"].tolist() == ["a.png", "b.png", "deeper/c.png"]
    assert batch["image"].tolist() == [b"a.png", b"b.png", b"deeper/c.png"]


# ---- a table of paths


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


def opened(folder: Path | str, *image: object) -> PathColumns:
    return PathColumns(Table(image), ("image",), str(folder))


def read(source: PathColumns) -> list[object]:
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
    (batch,) = PathColumns(Table((0, 0, 0), dense), ("image",), str(tmp_path)).read(0, 3, ["image"])
    assert np.shares_memory(batch["image"], dense)


def test_a_column_of_text_that_is_not_meant_as_paths_passes_untouched(tmp_path: Path) -> None:
    assert read(PathColumns(Table(("a", "b")), ("other",), str(tmp_path))) == ["a", "b"]


def test_a_column_of_fixed_text_is_opened_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"A")
    assert read(PathColumns(Table((0,), np.array(["a"])), ("image",), str(tmp_path))) == [b"A"]


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
