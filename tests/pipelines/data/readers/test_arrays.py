"""Files of arrays come out as they were written, in pieces; damaged ones and pickled objects are refused by name."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.files import File, find
from pipelines.data.readers.arrays import Idx, Npy, Npz, _sibling, labels_beside
from pipelines.data.source import BATCH_ROWS, joined
from tests import damage
from tests.idx import idx_bytes, pictures, write_idx
from workloads.base import DataError

ROWS = 500
PIXELS = np.arange(ROWS * 6, dtype=np.int16).reshape(ROWS, 3, 2)
NAMES = np.array([f"row {row} ü" for row in range(ROWS)])
ARRAYS = {"pixels": PIXELS, "name": NAMES, "turned": np.asfortranarray(PIXELS), "yes": PIXELS[:, 0, 0] % 4 == 0}


def opened(path: Path) -> Npy | Npz:
    (file,) = find(str(path))
    return Npy(file) if path.suffix == ".npy" else Npz(file, path.parent / "scratch")


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, PIXELS)
    else:
        (np.savez_compressed if "packed" in name else np.savez)(path, **ARRAYS)
    return path


def read(reader: Npy | Npz, start: int, stop: int, columns: list[str] | tuple[str, ...]) -> dict[str, np.ndarray]:
    return joined(list(reader.read(start, stop, columns)))


FILES = ["pixels.npy", "plain.npz", "packed.npz"]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS, PIXELS),
        (np.asfortranarray(PIXELS), PIXELS),
        (PIXELS[:, ::-1].transpose(0, 2, 1), PIXELS[:, ::-1].transpose(0, 2, 1)),
        (PIXELS.astype(">i2"), PIXELS),
        (np.linspace(0, 1, ROWS), np.linspace(0, 1, ROWS)),
        (np.array([True, False, True]), np.array([1, 0, 1], np.int8)),
        (NAMES, NAMES.astype(object)),
        (np.array([b"a", b"bc"]), np.array([b"a", b"bc"], dtype=object)),
        (np.array(["2020-01-01", "NaT"], "datetime64[D]"), np.array(["2020-01-01", "NaT"], "datetime64[D]")),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_an_array_is_read_as_it_was_saved(tmp_path: Path, array: np.ndarray, expected: np.ndarray, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    np.save(path, array) if ending == "npy" else np.savez(path, x=array)
    reader = opened(path)
    assert (reader.columns(), reader.rows()) == (("x",), len(array))
    found = read(reader, 0, len(array), ["x"])["x"]
    assert found.dtype == expected.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_any_range_is_what_numpy_reads(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "arrays"
    folder.mkdir(exist_ok=True)
    reader = opened(folder / name if (folder / name).exists() else written(folder, name))
    start = data.draw(st.integers(0, ROWS - 1))
    stop = data.draw(st.integers(start + 1, ROWS))
    columns = data.draw(st.lists(st.sampled_from(reader.columns()), min_size=1, unique=True))
    found = read(reader, start, stop, columns)
    for column in columns:
        np.testing.assert_array_equal(found[column], ARRAYS[column][start:stop])


def test_columns_are_named_by_the_file_or_its_members(tmp_path: Path) -> None:
    assert opened(written(tmp_path, "pixels.npy")).columns() == ("pixels",)
    reader = opened(written(tmp_path, "plain.npz"))
    assert reader.columns() == ("pixels", "name", "turned", "yes")
    assert (list(reader.starts()), reader.place(1234), reader.skipped().count) == ([0], "plain.npz, row 1,234", 0)


def test_batches_are_small(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.zeros(20_000, np.int8))
    reader = opened(tmp_path / "many.npy")
    assert [len(batch["many"]) for batch in reader.read(0, 20_000, ["many"])] == [BATCH_ROWS, BATCH_ROWS, 20_000 - 2 * BATCH_ROWS]
    assert list(reader.starts()) == [0, BATCH_ROWS, 2 * BATCH_ROWS]
    with (tmp_path / "large.npy").open("wb") as file:  # sparse: 1 GB that lies nowhere
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1000, 1 << 20)})
        file.truncate(file.tell() + (1000 << 20))
    assert len(next(iter(opened(tmp_path / "large.npy").read(0, 1000, ["large"])))["large"]) == 64


def test_no_rows_give_no_batches(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 3)))
    np.savez(tmp_path / "y.npz", x=np.zeros((0, 3)))
    for reader in (opened(tmp_path / "x.npy"), opened(tmp_path / "y.npz")):
        assert (reader.rows(), list(reader.starts()), list(reader.read(0, 0, ["x"]))) == (0, [0], [])


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.array([{"a": 1}, None], dtype=object), "holds Python objects, which are pickled and so never loaded"),
        (np.zeros(3, dtype=[("a", int), ("b", float)]), "each field as an array of its own"),
        (np.zeros(3, dtype=[("ü", int)]), "each field as an array of its own"),
        (np.array(7), r"its shape \(\) has no rows"),
        (np.zeros((3, 0)), r"its shape \(3, 0\) has no rows"),
        (np.zeros(3, "V4"), "save numbers or strings"),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_what_is_no_column_is_refused_by_name(tmp_path: Path, array: np.ndarray, problem: str, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    np.save(path, array) if ending == "npy" else np.savez(path, x=array)
    with pytest.raises(DataError, match=rf"^x\.{ending}: .*{problem}"):
        opened(path).rows()


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    Path("y.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("x.npy", "y.npy"):
        with pytest.raises(DataError, match=name):
            opened(Path(name)).rows()
    assert not Path("trapped").exists()


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(DataError, match=r"x\.npz: its arrays differ in rows: 3 in a, 4 in b"):
        opened(tmp_path / "x.npz").rows()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_of_other_things_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"x\.npz: holds 'readme\.txt', which is no \.npy array"):
        opened(tmp_path / "x.npz").rows()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", "")
        archive.writestr("a.npy", "")
    with pytest.raises(DataError, match=r"x\.npz: has the column 'a' more than once"):
        opened(tmp_path / "x.npz").rows()
    zipfile.ZipFile(tmp_path / "x.npz", "w").close()
    with pytest.raises(DataError, match=r"^x\.npz: "):
        opened(tmp_path / "x.npz").rows()


def test_a_column_or_row_that_is_not_there_is_told(tmp_path: Path) -> None:
    reader = opened(written(tmp_path, "pixels.npy"))
    with pytest.raises(DataError, match="there is no column 'image'; columns: pixels"):
        list(reader.read(0, 1, ["image"]))
    with pytest.raises(DataError, match="has 500 rows, but row 500 was asked for"):
        list(reader.read(0, 501, ["pixels"]))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [damage.truncate, damage.empty, damage.zero_page])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    path = written(tmp_path, name)
    harm(path)
    with pytest.raises(DataError, match=f"^{name}: "):
        read(opened(path), 0, ROWS, opened(path).columns())


def test_the_row_in_which_a_file_ends_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "pixels.npy")
    path.write_bytes(path.read_bytes()[: 128 + 12 * 7 + 5])
    with pytest.raises(DataError, match=r"pixels\.npy: ends in row 7, but its header promises 500"):
        opened(path).rows()
    path.write_bytes(written(tmp_path, "pixels.npy").read_bytes() + b"x")
    with pytest.raises(DataError, match=r"pixels\.npy: goes on after the 500 rows"):
        opened(path).rows()


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path: Path) -> None:
    for shape in [(1 << 60, 8), (8, 1 << 60), (-1, 4), (1 << 200,)]:
        with (tmp_path / "x.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with pytest.raises(DataError, match=r"^x\.npy: "):
            opened(tmp_path / "x.npy").rows()


@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_raises_nothing_but_data_error(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = written(tmp_path_factory.mktemp("damage"), name)
    content = path.read_bytes()

    @settings(max_examples=60)
    @given(st.integers(0, len(content) - 1) | st.integers(0, 200), st.integers(0, 7), st.booleans())
    @pytest.mark.filterwarnings("ignore")
    def harm(place: int, bit: int, cut: bool) -> None:
        path.write_bytes(content[:place] if cut else content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        reader = opened(path)
        with contextlib.suppress(DataError):
            found = read(reader, 0, reader.rows(), reader.columns())
            assert not cut
            assert len(found[reader.columns()[0]]) == reader.rows()
            if name.endswith(".npz"):  # its checksums tell: only names and dates can differ
                assert all(np.array_equal(found[column], ARRAYS[column]) for column in reader.columns() if column in ARRAYS)

    harm()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changes_or_disappears_between_plan_and_read_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    reader = opened(path)
    reader.rows()
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=f"{name}: has changed since its rows were counted"):
        read(pickle.loads(pickle.dumps(reader)), 0, ROWS, ["pixels"])  # noqa: S301
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: there is no such file any more"):
        read(reader, 0, ROWS, ["pixels"])


@pytest.mark.parametrize("name", FILES)
def test_a_file_elsewhere_is_read_alike(tmp_path: Path, name: str) -> None:
    uri = f"memory://arrays/{name}"
    with fsspec.open(uri, "wb") as file:
        file.write(written(tmp_path, name).read_bytes())
    reader = Npy(File(uri, name)) if name.endswith(".npy") else Npz(File(uri, name), tmp_path)
    np.testing.assert_array_equal(read(reader, 100, 300, ["pixels"])["pixels"], PIXELS[100:300])


# ---- IDX

IMAGES, LABELS = pictures(50)


def written_idx(folder: Path, gz: bool = True) -> Path:
    return write_idx(folder, IMAGES, LABELS, gz)


def pair(images: Path) -> Idx:
    (file,) = find(str(images))
    return Idx(file, images.parent / "scratch", False, labels_beside(file))


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
    reader = pair(written_idx(tmp_path, gz))
    assert reader.rows() == 50
    raw = joined(list(reader.read(start, stop, ["label", "image"])))
    if start == stop:
        assert not raw
        return
    assert raw["image"].dtype == np.uint8
    np.testing.assert_array_equal(raw["image"], IMAGES[start:stop])
    np.testing.assert_array_equal(raw["label"], LABELS[start:stop])


def test_a_plain_file_and_a_packed_one_are_entered_at_any_batch(tmp_path: Path) -> None:
    images, labels = np.zeros((20_000, 2, 2), np.uint8), (np.arange(20_000) % 251).astype(np.uint8)
    plain, packed = pair(write_idx(tmp_path / "plain", images, labels, gz=False)), pair(write_idx(tmp_path / "packed", images, labels))
    assert list(plain.starts()) == list(packed.starts()) == [0, 8192, 16384]
    for reader in (plain, packed):
        batches = list(reader.read(3, 20_000, ["label"]))
        assert [len(batch["label"]) for batch in batches] == [8189, 8192, 3616]
        np.testing.assert_array_equal(joined(batches)["label"], labels[3:])


def test_a_batch_of_large_images_is_no_larger_than_64_mebibytes(tmp_path: Path) -> None:
    rows = 130
    reader = pair(write_idx(tmp_path, np.zeros((rows, 1024, 1024), np.uint8), np.zeros(rows, np.uint8), gz=False))
    sizes = [len(batch["image"]) for batch in reader.read(0, rows, ["image"])]
    assert (sum(sizes), max(sizes)) == (rows, 63)  # each with its label


def test_a_pair_on_another_filesystem_is_read_as_one_on_this_machine(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, array in (("t-images-idx3-ubyte", IMAGES), ("t-labels-idx1-ubyte", LABELS)):
        memory.pipe(f"/idx/{name}.gz", gzip.compress(idx_bytes(array)))
    (file,) = find("memory://idx/t-images-idx3-ubyte.gz")
    reader = pickle.loads(pickle.dumps(Idx(file, tmp_path, False, labels_beside(file))))  # noqa: S301
    raw = joined(list(reader.read(10, reader.rows(), ["image", "label"])))
    np.testing.assert_array_equal(raw["image"], IMAGES[10:])
    np.testing.assert_array_equal(raw["label"], LABELS[10:])


def test_options_of_an_address_stay_with_the_labels() -> None:
    options = "?endpoint_override=localhost:1"
    images = File(f"s3://bucket/a/t-images-idx3-ubyte{options}", "a/t-images-idx3-ubyte")
    assert _sibling(images, "t-labels-idx1-ubyte") == File(f"s3://bucket/a/t-labels-idx1-ubyte{options}", "a/t-labels-idx1-ubyte")


def test_a_file_that_changes_after_it_was_counted_is_refused(tmp_path: Path) -> None:
    reader = pair(written_idx(tmp_path, gz=False))
    assert reader.rows() == 50
    write_idx(tmp_path, IMAGES[:40], LABELS[:40], gz=False)
    with pytest.raises(DataError, match="has changed since its rows were counted"):
        next(reader.read(0, 50, ["image"]))
    (tmp_path / "t-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"^t-images-idx3-ubyte: "):
        next(reader.read(0, 50, ["image"]))


def test_a_row_is_told_with_its_file(tmp_path: Path) -> None:
    assert pair(written_idx(tmp_path)).place(1234) == "t-images-idx3-ubyte.gz, row 1,234"


def test_labels_may_be_packed_where_images_are_not(tmp_path: Path) -> None:
    images = written_idx(tmp_path, gz=False)
    plain = tmp_path / "t-labels-idx1-ubyte"
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    np.testing.assert_array_equal(read_all(images)["label"], LABELS)


def test_labels_are_found_beside_a_link_to_the_images(tmp_path: Path) -> None:
    images, links = written_idx(tmp_path / "blobs"), tmp_path / "links"
    links.mkdir()
    for number, file in enumerate((images, images.with_name("t-labels-idx1-ubyte.gz"))):
        blob = file.rename(file.with_name(f"blob{number}"))
        (links / file.name).symlink_to(blob)
    np.testing.assert_array_equal(read_all(links / images.name)["image"], IMAGES)


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte.gz", "t-labels-idx1-ubyte.gz"])
def test_a_truncated_gzip_is_refused_by_name(tmp_path: Path, name: str) -> None:
    images = written_idx(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    assert refusal(images) == f"{name}: a truncated or damaged gzip file"


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte.gz", "t-labels-idx1-ubyte.gz"])
def test_another_kind_of_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    images = written_idx(tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(b"P5 8 8 255 " + bytes(1000)))
    assert refusal(images).startswith(f"{name}: not an IDX file of bytes in")


def test_labels_given_as_images_are_refused(tmp_path: Path) -> None:
    written_idx(tmp_path)
    link = tmp_path / "x-images-idx3-ubyte.gz"
    link.write_bytes((tmp_path / "t-labels-idx1-ubyte.gz").read_bytes())
    (tmp_path / "x-labels-idx1-ubyte.gz").write_bytes((tmp_path / "t-labels-idx1-ubyte.gz").read_bytes())
    assert refusal(link).startswith("x-images-idx3-ubyte.gz: not an IDX file of bytes in 3 dimensions")


def test_labels_that_do_not_match_the_images_are_counted(tmp_path: Path) -> None:
    sentence = refusal(write_idx(tmp_path, IMAGES, LABELS[:-1]))
    assert sentence == "t-images-idx3-ubyte.gz has 50 images, but t-labels-idx1-ubyte.gz has 49 labels"


def test_missing_labels_are_told_with_the_name_expected(tmp_path: Path) -> None:
    images = written_idx(tmp_path)
    (tmp_path / "t-labels-idx1-ubyte.gz").unlink()
    assert "t-images-idx3-ubyte.gz: its labels are not beside it; expected t-labels-idx1-ubyte" in refusal(images)


@pytest.mark.parametrize("name", ["t-images-idx3-ubyte", "t-labels-idx1-ubyte"])
def test_a_short_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    images = written_idx(tmp_path, gz=False)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert refusal(images) == f"{name}: ends in row 49, but its header promises 50"


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("kept", [0, 3, 10])
def test_an_empty_file_or_a_part_of_a_header_is_refused_by_name(tmp_path: Path, gz: bool, kept: int) -> None:
    images = written_idx(tmp_path, gz)
    images.write_bytes(images.read_bytes()[:kept])
    assert refusal(images).startswith(f"{images.name}: ")


@pytest.mark.parametrize("size", [-1, 2**31 - 1])
def test_a_header_with_impossible_sizes_is_refused_by_name(tmp_path: Path, size: int) -> None:
    images = written_idx(tmp_path, gz=False)
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
    images = written_idx(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: max(0, len(content) - lost)])
    read_or_refused(images)


@settings(max_examples=200)
@given(name=PACKED, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_bit_flipped_anywhere_in_a_gzip_never_gives_other_rows(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, bit: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    images = written_idx(folder)
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
    images = written_idx(folder, gz=False)
    content = bytearray((folder / name[0]).read_bytes())
    content[place % name[1]] ^= 1 << bit
    (folder / name[0]).write_bytes(content)
    assert refusal(images).startswith(f"{name[0]}: ")


def test_images_alone_need_no_labels(tmp_path):
    pictures = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = write_idx(tmp_path, pictures, np.zeros(2, np.uint8), gz=False)
    found = Idx(File(str(path), path.name), tmp_path)
    assert (found.columns(), found.rows(), list(found.starts())) == (("image",), 2, [0])
    [batch] = found.read(1, 2, ["image"])
    assert (batch["image"] == pictures[1:]).all()
