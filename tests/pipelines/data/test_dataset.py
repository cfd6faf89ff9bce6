"""Prepared datasets give back what was put in, and refuse to be opened when they are not what was written."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import sealed
from pipelines.data import dataset as prepared
from pipelines.data.dataset import MANIFEST, SAMPLE, Dataset, join, leaked, parts, shards_of
from pipelines.data.stats import row_hashes
from tests import damage
from tests.made import COLUMNS, dataset_in, store_in, written
from workloads.base import Arrays, DataError

SHARD_BYTES = {"one shard": 1 << 28, "two shards": 20_000, "a shard of each piece": 1}
SIZES = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("train", "validation", "test"), st.integers(1, 150))), max_size=30)
DAMAGES = [damage.truncate, damage.flip_bit, damage.zero_page, damage.empty, damage.delete]


@pytest.fixture(params=sorted(SHARD_BYTES))
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return dataset_in(tmp_path, shard_bytes=SHARD_BYTES[request.param])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were hashed."""
    names: list[str] = []
    honest = sealed.sha256

    def counting(path: Path) -> str:
        names.append(path.name)
        return honest(path)

    monkeypatch.setattr(sealed, "sha256", counting)
    return names


# ---- what was put in


@pytest.mark.parametrize("column", sorted(COLUMNS))
def test_all_rows_come_back_as_they_were(dataset: Dataset, column: str) -> None:
    rows = Dataset.open(dataset.folder).validation
    taken = rows.take(np.arange(37))[column]
    assert len(rows) == 37
    assert taken.dtype == COLUMNS[column].dtype
    np.testing.assert_array_equal(taken, COLUMNS[column])


def test_parts_are_joined_into_shards_of_a_size(tmp_path: Path) -> None:
    counts = {how: len(dataset_in(tmp_path / how, shard_bytes=size).manifest.shards) for how, size in SHARD_BYTES.items()}
    assert counts == {"one shard": 3, "two shards": 6, "a shard of each piece": 12}


def test_only_the_columns_asked_for_are_taken(dataset: Dataset) -> None:
    assert list(dataset.train.take(np.arange(2), ["real"])) == ["real"]


def test_rows_taken_are_copies_that_may_be_written_to(dataset: Dataset) -> None:
    dataset.train.take(np.arange(37))["pixels"][:] = 0
    np.testing.assert_array_equal(dataset.train.take(np.arange(37))["pixels"], COLUMNS["pixels"])


@settings(max_examples=50)
@given(index=st.lists(st.integers(0, 36), max_size=60), how=st.sampled_from(sorted(SHARD_BYTES)))
def test_any_rows_are_taken_as_numpy_would(tmp_path_factory: pytest.TempPathFactory, index: list[int], how: str) -> None:
    folder = tmp_path_factory.getbasetemp() / f"taken {how}"
    dataset = Dataset.open(folder / "kept" / "data") if folder.exists() else dataset_in(folder, shard_bytes=SHARD_BYTES[how])
    rows = np.array(index, dtype=np.int64)
    for name, column in dataset.test.take(rows).items():
        np.testing.assert_array_equal(column, COLUMNS[name][rows])


def test_a_view_with_an_axis_of_one_comes_back_as_it_was(tmp_path: Path) -> None:
    images = COLUMNS["grey"][:, 0]
    dataset = dataset_in(tmp_path, {"one": COLUMNS["one"], "image": images[:, None]})
    np.testing.assert_array_equal(dataset.train.take(np.arange(37))["image"], images[:, None])


def test_the_manifest_comes_back(dataset: Dataset) -> None:
    again = Dataset.open(dataset.folder).manifest
    assert again == dataset.manifest
    assert again.rows == {"train": 37, "validation": 37, "test": 37}
    assert again.encoding == {"mean": [0.25]}
    assert again.columns == {
        "one": "int64",
        "pixels": "uint8 3x4x5",
        "grey": "uint8 1x4x5",
        "long": "int64 2x3x2",
        "real": "float 2x1x3",
        "scalar": "float",
    }
    assert sum(file.bytes for file in again.files.values()) == sum(
        path.stat().st_size for path in dataset.folder.iterdir() if path.name != MANIFEST
    )


def objects(*values: Any) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


SAMPLES = {
    "strings": objects("a", "", "ä\0\n", "long" * 999),
    "strings, some missing": objects(None, "b", None, "d"),
    "bytes": objects(b"", b"\x89PNG\0\xff", b"c", b"d"),
    "bytes, some missing": objects(b"a", None, b"c", None),
    "nothing but missing": objects(None, None, None, None),
    "text of one width": np.array(["ab", "c", "", "d"]),
    "integers": np.array([1, -(2**62), 3, 4]),
    "small integers": np.array([0, 1, 255, 4], np.uint8),
    "truths": np.array([True, False, True, True]),
    "reals": np.array([1.5, np.nan, np.inf, -0.0]),
    "times": np.array(["2020-01-01", "NaT", "1999-12-31T23:59:59", "2262-01-01"], "datetime64[ns]"),
    "days": np.array(["2020-01-01", "1999-12-31", "0001-01-01", "9999-12-31"], "datetime64[s]"),
    "vectors": np.arange(12, dtype=np.float32).reshape(4, 3),
    "images": np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3),
}


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_the_sample_comes_back_as_the_source_gave_it(tmp_path: Path, kind: str) -> None:
    store = store_in(tmp_path)
    written(store, sample={kind: SAMPLES[kind]})
    back = Dataset.open(store.folder("data")).sample[kind]
    if SAMPLES[kind].dtype.kind in "OU":
        assert back.tolist() == SAMPLES[kind].tolist()
    else:
        assert back.dtype == SAMPLES[kind].dtype
        np.testing.assert_array_equal(back, SAMPLES[kind])


def test_lists_of_several_lengths_come_back_in_the_sample(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    written(store, sample={"lists": objects([1.0, 2.0], [], [3.0])})
    assert [list(value) for value in Dataset.open(store.folder("data")).sample["lists"]] == [[1, 2], [], [3]]


@pytest.mark.parametrize("how", sorted(SHARD_BYTES))
def test_the_same_rows_are_the_same_bytes(tmp_path: Path, how: str) -> None:
    first, again = (dataset_in(tmp_path / name, shard_bytes=SHARD_BYTES[how]).folder for name in ("first", "again"))
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {path.name: path.read_bytes() for path in again.iterdir()}


# ---- parts into shards


@given(sizes=SIZES)
def test_every_part_is_in_one_shard_in_order_and_no_shard_is_larger_than_it_must_be(sizes: list[dict[str, int]]) -> None:
    told: list[dict[str, Any]] = [
        {"parts": {split: [f"{split}-{number}", size] for split, size in one.items()}} for number, one in enumerate(sizes)
    ]
    bytes_of = {name: size for one in told for name, size in one["parts"].values()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "SHARD_BYTES", 100)
        shards = shards_of(told)
    for split in ("train", "validation", "test"):
        ours = [(number, parts) for name, number, parts in shards if name == split]
        assert [part for _, parts in ours for part in parts] == [one["parts"][split][0] for one in told if split in one["parts"]]
        assert [number for number, _ in ours] == list(range(len(ours)))
        full = [sum(bytes_of[part] for part in parts) for _, parts in ours]
        assert all(size <= 100 or len(parts) == 1 for size, (_, parts) in zip(full, ours, strict=True))
        assert all(size + bytes_of[parts[0]] > 100 for size, (_, parts) in zip(full, ours[1:], strict=False))


def test_a_shard_is_one_record_batch_of_all_rows_of_its_parts(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    x = np.arange(20).reshape(10, 2)
    for number, (start, stop) in enumerate([(0, 3), (3, 4), (4, 10)]):
        with store.workspace() as here:
            with parts(here) as add:
                for low in range(start, stop):
                    add("test", {"x": x[low : low + 1]})
            store.put(here / "test", "work", f"test-{number}.part")
    made = join(store, "work", "folder", ["test", 7, [f"test-{number}" for number in range(3)]])
    shard = made["shard"]
    assert (shard["split"], shard["number"], shard["rows"]) == ("test", 7, 10)
    reader = pa.ipc.open_file(store.get("folder", "test-00007.arrow", tmp_path))
    assert reader.num_record_batches == 1
    np.testing.assert_array_equal(reader.get_batch(0)["x"].to_numpy_ndarray(), x)
    assert not list(tmp_path.rglob(".work*"))


@settings(max_examples=40)
@given(train=st.lists(st.lists(st.integers(0, 20))), test=st.lists(st.lists(st.integers(0, 40))))
def test_test_rows_that_are_training_rows_too_are_counted(
    tmp_path_factory: pytest.TempPathFactory, train: list[list[int]], test: list[list[int]]
) -> None:
    store = store_in(tmp_path_factory.mktemp("leaks"))
    told: list[dict[str, Any]] = []
    for split, pieces in (("train", train), ("test", test)):
        for number, rows in enumerate(pieces):
            with store.workspace() as here:
                np.save(here / "x.npy", row_hashes({"x": np.array(rows)}) if rows else np.empty(0, np.uint64))
                store.put(here / "x.npy", "work", f"{split}-{number}.npy")
            told.append({"parts": {split: [f"{split}-{number}", 1]}})
    trained = {row for rows in train for row in rows}
    assert leaked(store, "work", told) == sum(
        count for row, count in Counter(row for rows in test for row in rows).items() if row in trained
    )


# ---- what is not what was written


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, number: int, harm: Callable[[Path], None]) -> None:
    dataset = dataset_in(tmp_path, shard_bytes=SHARD_BYTES["two shards"])
    name = sorted(dataset.manifest.files)[number]
    harm(dataset.folder / name)
    with pytest.raises(DataError, match=f"{dataset.folder}/{name}: .*delete the folder"):
        Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    assert not list(tmp_path.rglob("proofs/*"))


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = dataset_in(tmp_path).folder
    harm(folder / MANIFEST)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Dataset.open(folder)


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def seal(folder: Path) -> None:
    """As somebody would who means harm."""
    found = prepared.Manifest.model_validate_json((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(found.with_seal().model_dump_json())


@pytest.mark.parametrize("split", ["../train", "/etc/hostname", "a/../train", ".."])
def test_a_manifest_that_points_outside_its_folder_is_refused(tmp_path: Path, split: str) -> None:
    folder = dataset_in(tmp_path).folder
    rewrite(folder, lambda manifest: manifest["shards"][0].update(split=split))
    seal(folder)
    with pytest.raises(DataError, match=f"{folder}/"):
        Dataset.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest["encoding"].update(mean=[0.75]),
        lambda manifest: manifest["summary"].update(used=36, skipped=1),
        lambda manifest: manifest.update(format=1),
        lambda manifest: manifest.update(fingerprint="another"),
        lambda manifest: manifest.update(more=1),
        lambda manifest: manifest.pop("sample"),
        lambda manifest: manifest.pop("seal"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(tmp_path: Path, change: Callable[[dict], object]) -> None:
    folder = dataset_in(tmp_path).folder
    rewrite(folder, change)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Dataset.open(folder)


def test_a_folder_that_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a prepared dataset, there is no manifest\.json"):
        Dataset.open(tmp_path)


# ---- proofs


def test_every_file_is_read_on_the_first_opening_and_none_on_the_second(dataset: Dataset, tmp_path: Path, read: list[str]) -> None:
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    assert sorted(read) == sorted(dataset.manifest.files)
    read.clear()
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    assert read == []


def test_without_proofs_no_file_is_read(dataset: Dataset, read: list[str]) -> None:
    Dataset.open(dataset.folder)
    assert read == []


def test_another_node_proves_for_itself(dataset: Dataset, tmp_path: Path, read: list[str]) -> None:
    for node in ("here", "there"):
        Dataset.open(dataset.folder, proofs=tmp_path / node)
    assert sorted(read) == sorted([*dataset.manifest.files] * 2)


def test_a_file_that_was_touched_is_proven_again(dataset: Dataset, tmp_path: Path, read: list[str]) -> None:
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    read.clear()
    os.utime(dataset.folder / SAMPLE, ns=(1, 1))
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    assert SAMPLE in read


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_file_damaged_after_it_was_proven_is_refused(dataset: Dataset, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    name = next(iter(dataset.manifest.files))
    os.utime(dataset.folder / name, ns=(1, 1))  # a disk's clock may stand still for some milliseconds
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    harm(dataset.folder / name)
    with pytest.raises(DataError, match=name):
        Dataset.open(dataset.folder, proofs=tmp_path / "proofs")


def test_a_copy_of_a_dataset_is_proven_for_itself(tmp_path: Path) -> None:
    good, bad = dataset_in(tmp_path / "good").folder, dataset_in(tmp_path / "bad").folder
    Dataset.open(good, proofs=tmp_path / "proofs")
    damage.flip_bit(bad / SAMPLE)
    with pytest.raises(DataError, match=SAMPLE):
        Dataset.open(bad, proofs=tmp_path / "proofs")


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"{}", b"[1, 2"])
def test_a_damaged_note_only_makes_the_files_be_read_again(dataset: Dataset, tmp_path: Path, read: list[str], note: bytes) -> None:
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    (path,) = (tmp_path / "proofs").iterdir()
    path.write_bytes(note)
    read.clear()
    Dataset.open(dataset.folder, proofs=tmp_path / "proofs")
    assert sorted(read) == sorted(dataset.manifest.files)


# ---- several at once


def test_several_that_write_the_same_dataset_at_once_leave_one_good_folder(tmp_path: Path) -> None:
    start, store, failed = threading.Barrier(4), store_in(tmp_path), []

    def one() -> None:
        start.wait()
        try:
            written(store)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert os.listdir(tmp_path / "kept") == ["data"]
    same_rows(Dataset.open(store.folder("data"), proofs=tmp_path / "proofs").train.take(np.arange(37)), COLUMNS)


def same_rows(ours: Arrays, theirs: Arrays) -> None:
    for name, column in theirs.items():
        np.testing.assert_array_equal(ours[name], column)


def test_where_no_note_can_be_kept_a_dataset_is_proven_all_the_same(tmp_path: Path) -> None:
    folder = dataset_in(tmp_path).folder
    (tmp_path / "file").write_text("")
    proofs = tmp_path / "file" / "proofs"  # below a file there can be no folder, not even for root
    assert len(Dataset.open(folder, proofs=proofs).train) == 37
    damage.flip_bit(folder / "train-00000.arrow")
    with pytest.raises(DataError, match="its content is not what was written"):
        Dataset.open(folder, proofs=proofs)
