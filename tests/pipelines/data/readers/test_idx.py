"""IDX files are read as they were written, or refused by name."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File, find
from pipelines.data.readers.idx import Idx, _sibling, beside
from pipelines.data.source import joined
from tests.idx import idx_bytes, pictures, write_idx
from workloads.base import DataError

IMAGES, LABELS = pictures(50)


def written(folder: Path, gz: bool = True) -> Path:
    return write_idx(folder, IMAGES, LABELS, gz)


def pair(images: Path) -> Idx:
    (file,) = find(str(images))
    return beside(file)


def read_all(images: Path) -> dict[str, np.ndarray]:
    reader = pair(images)
    return dict(joined(list(reader.read(0, reader.rows(), reader.columns()))))


def refusal(images: Path) -> str:
    """The sentence with which opening and reading all rows is refused."""
    with pytest.raises(DataError) as error:
        read_all(images)
    return str(error.value)


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 50), (0, 1), (49, 50), (7, 31), (5, 5)])
def test_rows_are_read_as_they_were_written(tmp_path: Path, gz: bool, start: int, stop: int) -> None:
    reader = pair(written(tmp_path, gz))
    assert reader.rows() == 50
    raw = joined(list(reader.read(start, stop, ["label", "image"])))
    if start == stop:
        assert not raw
        return
    assert raw["image"].dtype == np.uint8
    np.testing.assert_array_equal(raw["image"], IMAGES[start:stop])
    np.testing.assert_array_equal(raw["label"], LABELS[start:stop])


def test_a_plain_file_is_entered_at_any_row_and_a_packed_one_at_its_first(tmp_path: Path) -> None:
    images, labels = np.zeros((20_000, 2, 2), np.uint8), (np.arange(20_000) % 251).astype(np.uint8)
    plain, packed = pair(write_idx(tmp_path / "plain", images, labels, gz=False)), pair(write_idx(tmp_path / "packed", images, labels))
    assert (list(plain.starts()), list(packed.starts())) == ([0, 8192, 16384], [0])
    for reader in (plain, packed):
        batches = list(reader.read(3, 20_000, ["label"]))
        assert [len(batch["label"]) for batch in batches] == [8192, 8192, 3613]
        np.testing.assert_array_equal(joined(batches)["label"], labels[3:])


def test_a_batch_of_large_images_is_no_larger_than_64_mebibytes(tmp_path: Path) -> None:
    rows = 130
    reader = pair(write_idx(tmp_path, np.zeros((rows, 1024, 1024), np.uint8), np.zeros(rows, np.uint8), gz=False))
    assert [len(batch["image"]) for batch in reader.read(0, rows, ["image"])] == [64, 64, 2]


def test_a_pair_on_another_filesystem_is_read_as_one_on_this_machine() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, array in (("t-images-idx3-ubyte", IMAGES), ("t-labels-idx1-ubyte", LABELS)):
        memory.pipe(f"/idx/{name}.gz", gzip.compress(idx_bytes(array)))
    (file,) = find("memory://idx/t-images-idx3-ubyte.gz")
    reader = pickle.loads(pickle.dumps(beside(file)))  # noqa: S301
    raw = joined(list(reader.read(10, reader.rows(), ["image", "label"])))
    np.testing.assert_array_equal(raw["image"], IMAGES[10:])
    np.testing.assert_array_equal(raw["label"], LABELS[10:])


def test_options_of_an_address_stay_with_the_labels() -> None:
    options = "?endpoint_override=localhost:1"
    images = File(f"s3://bucket/a/t-images-idx3-ubyte{options}", "a/t-images-idx3-ubyte")
    assert _sibling(images, "t-labels-idx1-ubyte") == File(f"s3://bucket/a/t-labels-idx1-ubyte{options}", "a/t-labels-idx1-ubyte")


def test_a_file_that_changes_after_it_was_counted_is_refused(tmp_path: Path) -> None:
    reader = pair(written(tmp_path, gz=False))
    assert reader.rows() == 50
    write_idx(tmp_path, IMAGES[:40], LABELS[:40], gz=False)
    with pytest.raises(DataError, match="has changed since it was first read"):
        next(reader.read(0, 50, ["image"]))
    (tmp_path / "t-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"^t-images-idx3-ubyte: "):
        next(reader.read(0, 50, ["image"]))


def test_a_row_is_told_with_its_file(tmp_path: Path) -> None:
    assert pair(written(tmp_path)).place(1234) == "t-images-idx3-ubyte.gz, row 1,234"


def test_labels_may_be_packed_where_images_are_not(tmp_path: Path) -> None:
    images = written(tmp_path, gz=False)
    plain = tmp_path / "t-labels-idx1-ubyte"
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    np.testing.assert_array_equal(read_all(images)["label"], LABELS)


def test_labels_are_found_beside_a_link_to_the_images(tmp_path: Path) -> None:
    images, links = written(tmp_path / "blobs"), tmp_path / "links"
    links.mkdir()
    for number, file in enumerate((images, images.with_name("t-labels-idx1-ubyte.gz"))):
        blob = file.rename(file.with_name(f"blob{number}"))
        (links / file.name).symlink_to(blob)
    np.testing.assert_array_equal(read_all(links / images.name)["image"], IMAGES)


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte.gz", "t-labels-idx1-ubyte.gz"])
def test_a_truncated_gzip_is_refused_by_name(tmp_path: Path, name: str) -> None:
    images = written(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    assert refusal(images).startswith(f"{name}: a truncated or damaged gzip file")


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte.gz", "t-labels-idx1-ubyte.gz"])
def test_another_kind_of_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    images = written(tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(b"P5 8 8 255 " + bytes(1000)))
    assert refusal(images).startswith(f"{name}: not an IDX file of bytes in")


def test_labels_given_as_images_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    link = tmp_path / "x-images-idx3-ubyte.gz"
    link.write_bytes((tmp_path / "t-labels-idx1-ubyte.gz").read_bytes())
    (tmp_path / "x-labels-idx1-ubyte.gz").write_bytes((tmp_path / "t-labels-idx1-ubyte.gz").read_bytes())
    assert refusal(link).startswith("x-images-idx3-ubyte.gz: not an IDX file of bytes in 3 dimensions")


def test_labels_that_do_not_match_the_images_are_counted(tmp_path: Path) -> None:
    sentence = refusal(write_idx(tmp_path, IMAGES, LABELS[:-1]))
    assert sentence == "t-images-idx3-ubyte.gz has 50 images, but t-labels-idx1-ubyte.gz has 49 labels"


def test_missing_labels_are_told_with_the_name_expected(tmp_path: Path) -> None:
    images = written(tmp_path)
    (tmp_path / "t-labels-idx1-ubyte.gz").unlink()
    assert "t-images-idx3-ubyte.gz: its labels are not beside it; expected t-labels-idx1-ubyte" in refusal(images)


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte", "t-labels-idx1-ubyte"])
def test_a_short_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    images = written(tmp_path, gz=False)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert refusal(images) == f"{name}: ends in row 49, but its header promises 50"


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("kept", [0, 3, 10])
def test_an_empty_file_or_a_part_of_a_header_is_refused_by_name(tmp_path: Path, gz: bool, kept: int) -> None:
    images = written(tmp_path, gz)
    images.write_bytes(images.read_bytes()[:kept])
    assert refusal(images).startswith(f"{images.name}: ")


@pytest.mark.parametrize("size", [-1, 2**31 - 1])
def test_a_header_with_impossible_sizes_is_refused_by_name(tmp_path: Path, size: int) -> None:
    images = written(tmp_path, gz=False)
    content = bytearray(idx_bytes(IMAGES))
    content[8:16] = size.to_bytes(4, "big", signed=True) * 2
    images.write_bytes(content)
    assert refusal(images).startswith(f"{images.name}: ")


def read_or_refused(images: Path) -> None:
    """All rows are those that were written, or a DataError says that they are not."""
    try:
        raw = read_all(images)
    except DataError as error:
        refused = str(error)
    else:
        refused = ""
        np.testing.assert_array_equal(raw["image"], IMAGES)
        np.testing.assert_array_equal(raw["label"], LABELS)
    assert not refused or "t-" in refused


PACKED = st.sampled_from(["t-images-idx3-ubyte.gz", "t-labels-idx1-ubyte.gz"])


@settings(max_examples=60)
@given(name=PACKED, lost=st.integers(1, 1700))
def test_a_gzip_truncated_anywhere_gives_all_rows_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, name: str, lost: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "truncated"
    images = written(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: max(0, len(content) - lost)])
    read_or_refused(images)


@settings(max_examples=200)
@given(name=PACKED, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_bit_flipped_anywhere_in_a_gzip_never_gives_other_rows(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, bit: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    images = written(folder)
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(content)
    read_or_refused(images)


@settings(max_examples=60)
@given(name=st.sampled_from([("t-images-idx3-ubyte", 16), ("t-labels-idx1-ubyte", 8)]), place=st.integers(0, 15), bit=st.integers(0, 7))
def test_a_bit_flipped_in_the_header_of_a_plain_file_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, name: tuple[str, int], place: int, bit: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "plain"
    images = written(folder, gz=False)
    content = bytearray((folder / name[0]).read_bytes())
    content[place % name[1]] ^= 1 << bit
    (folder / name[0]).write_bytes(content)
    assert refusal(images).startswith(f"{name[0]}: ")


def test_images_alone_need_no_labels(tmp_path):
    pictures = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = write_idx(tmp_path, pictures, np.zeros(2, np.uint8), gz=False)
    found = Idx(File(str(path), path.name))
    assert (found.columns(), found.rows(), list(found.starts())) == (("image",), 2, [0])
    [batch] = found.read(1, 2, ["image"])
    assert (batch["image"] == pictures[1:]).all()
