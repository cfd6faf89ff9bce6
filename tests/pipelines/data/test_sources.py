"""IDX files are read as they were written, or refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.sources import Source, open_source
from tests.idx import idx_bytes, pictures, write_idx
from workloads.base import DataError

IMAGES, LABELS = pictures(50)


def written(folder: Path, gz: bool = True) -> Path:
    return write_idx(folder, IMAGES, LABELS, gz)


def refusal(source: Source | Path) -> str:
    """The sentence with which opening and reading all rows is refused."""
    with pytest.raises(DataError) as error:
        read_all(source)
    return str(error.value)


def read_all(source: Source | Path) -> dict[str, np.ndarray]:
    source = open_source(str(source)) if isinstance(source, Path) else source
    return dict(source.read(0, source.rows(), source.columns()))


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 50), (0, 1), (49, 50), (7, 31), (5, 5)])
def test_rows_are_read_as_they_were_written(tmp_path: Path, gz: bool, start: int, stop: int) -> None:
    source = open_source(str(written(tmp_path, gz)))
    raw = source.read(start, stop, source.columns())
    assert source.rows() == 50
    assert raw["image"].dtype == np.uint8
    np.testing.assert_array_equal(raw["image"], IMAGES[start:stop])
    np.testing.assert_array_equal(raw["label"], LABELS[start:stop])


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


def test_the_identity_is_that_of_the_bytes(tmp_path: Path) -> None:
    first, same = open_source(str(written(tmp_path / "a"))), open_source(str(written(tmp_path / "b")))
    other = open_source(str(write_idx(tmp_path / "c", IMAGES, LABELS[::-1].copy())))
    assert first.identity() == same.identity() != other.identity()


def test_the_embedded_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    raw = read_all(open_source("digits"))
    np.testing.assert_array_equal(raw["image"], load_digits().images)
    np.testing.assert_array_equal(raw["label"], load_digits().target)


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


def test_a_missing_file_is_told_as_it_was_written(tmp_path: Path) -> None:
    missing = tmp_path / "none-images-idx3-ubyte.gz"
    assert refusal(missing).startswith(f"{missing}: no such file")


def test_a_folder_is_no_source(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path}: no such file")


@pytest.mark.parametrize("address", ["s3://bucket/t-images-idx3-ubyte.gz", "https://example.org/x.gz"])
def test_an_address_is_not_read_yet(address: str) -> None:
    with pytest.raises(DataError, match=f"^{address}: only local files"):
        open_source(address)


@pytest.mark.parametrize("text", ["", "~nobody-of-this-name/x", "a\0b", "x" * 300])
def test_a_source_that_can_be_no_path_is_told(text: str) -> None:
    with pytest.raises(DataError):
        open_source(text)


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
