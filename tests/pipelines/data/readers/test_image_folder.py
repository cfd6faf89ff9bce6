"""A folder a class: every picture a row, in the order of names, its bytes those on the disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.files import File, find
from pipelines.data.readers.image_folder import ImageFolder, pictures_in
from pipelines.data.source import joined
from workloads.base import DataError


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
    import fsspec

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
