"""Prepared datasets give back what was put in, and refuse to be opened when they are not what was written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import prepared
from pipelines.data.prepared import Dataset
from tests import damage
from workloads.base import DataError

GENERATOR = np.random.default_rng(0)
COLUMNS = {
    "one": GENERATOR.integers(-(2**60), 2**60, 37),
    "pixels": GENERATOR.integers(0, 256, (37, 3, 4, 5), dtype=np.uint8),
    "grey": GENERATOR.integers(0, 256, (37, 1, 4, 5), dtype=np.uint8),
    "long": GENERATOR.integers(-(2**60), 2**60, (37, 2, 3, 2)),
    "real": GENERATOR.normal(size=(37, 2, 1, 3)).astype(np.float32),
    "scalar": GENERATOR.normal(size=37).astype(np.float32),
}
CUTS = [0, 5, 6, 20, 37]
FILES = ["train.arrow", "validation.arrow", "test.arrow", "sample.npz"]


def make(folder: Path, columns: dict[str, np.ndarray] = COLUMNS) -> Dataset:
    """A dataset whose three splits hold the same rows, written in pieces as `prepare` writes them."""
    partial = prepared.partial_folder(folder)
    for split in ("train", "validation", "test"):
        for number, (start, stop) in enumerate(pairwise(CUTS)):
            prepared.write_part(partial, split, number, {name: column[start:stop] for name, column in columns.items()})
    sample = {"one": columns["one"][:3]}
    encoding = {"mean": [0.25]}
    return prepared.finish(partial, folder, fingerprint=folder.name, source={"rows": "made up"}, encoding=encoding, sample=sample)


@pytest.fixture
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_BATCH_BYTES", 1)  # a batch of each piece


@pytest.fixture(params=["one batch", "several batches"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    if request.param == "several batches":
        request.getfixturevalue("several_batches")
    return make(tmp_path / "data")


@pytest.mark.parametrize("column", sorted(COLUMNS))
def test_all_rows_come_back_as_they_were(dataset: Dataset, column: str) -> None:
    rows = Dataset.open(dataset.folder).validation
    taken = rows.take(np.arange(37))[column]
    assert len(rows) == 37
    assert taken.dtype == COLUMNS[column].dtype
    np.testing.assert_array_equal(taken, COLUMNS[column])


def test_only_the_columns_asked_for_are_taken(dataset: Dataset) -> None:
    assert list(dataset.train.take(np.arange(2), ["real"])) == ["real"]


def test_rows_taken_are_copies_that_may_be_written_to(dataset: Dataset) -> None:
    dataset.train.take(np.arange(37))["pixels"][:] = 0
    np.testing.assert_array_equal(dataset.train.take(np.arange(37))["pixels"], COLUMNS["pixels"])


@settings(max_examples=50)
@given(index=st.lists(st.integers(0, 36), max_size=60), limit=st.sampled_from([1, 900, 1 << 30]))
def test_any_rows_are_taken_as_numpy_would(tmp_path_factory: pytest.TempPathFactory, index: list[int], limit: int) -> None:
    folder = tmp_path_factory.getbasetemp() / f"taken-{limit}"
    if not folder.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepared, "_BATCH_BYTES", limit)
            make(folder)
    rows = np.array(index, dtype=np.int64)
    for name, column in Dataset.open(folder, verify=False).test.take(rows).items():
        np.testing.assert_array_equal(column, COLUMNS[name][rows])


def test_a_view_with_an_axis_of_one_comes_back_as_it_was(tmp_path: Path) -> None:
    images = COLUMNS["grey"][:, 0]
    dataset = make(tmp_path / "data", {"one": COLUMNS["one"], "image": images[:, None]})
    np.testing.assert_array_equal(dataset.train.take(np.arange(37))["image"], images[:, None])


def test_the_sample_and_the_manifest_come_back(dataset: Dataset) -> None:
    again = Dataset.open(dataset.folder)
    np.testing.assert_array_equal(again.sample["one"], COLUMNS["one"][:3])
    assert again.manifest == dataset.manifest
    assert again.manifest.rows == {"train": 37, "validation": 37, "test": 37}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [damage.truncate, damage.flip_bit, damage.zero_page, damage.empty, damage.delete])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    folder = make(tmp_path / "data").folder
    harm(folder / name)
    with pytest.raises(DataError, match=f"{folder}/{name}: "):
        Dataset.open(folder)


@pytest.mark.parametrize("harm", [damage.truncate, damage.zero_page, damage.empty, damage.delete])
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = make(tmp_path / "data").folder
    harm(folder / "manifest.json")
    with pytest.raises(DataError, match=r"manifest\.json"):
        Dataset.open(folder)


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../train.arrow", "/etc/hostname", "a/../train.arrow", "..", ""])
def test_a_manifest_that_points_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "data").folder
    rewrite(folder, lambda manifest: manifest["files"].update({name: manifest["files"]["train.arrow"]}))
    with pytest.raises(DataError, match=f"{folder}/"):
        Dataset.open(folder)


def test_a_manifest_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "data").folder
    rewrite(folder, lambda manifest: manifest["files"].pop("train.arrow"))
    with pytest.raises(DataError):
        Dataset.open(folder)


def test_a_digit_flipped_in_the_encoding_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "data").folder
    rewrite(folder, lambda manifest: manifest["encoding"].update(mean=[0.75]))
    with pytest.raises(DataError):
        Dataset.open(folder)


def test_a_dataset_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "data").folder
    rewrite(folder, lambda manifest: manifest.update(format=2))
    with pytest.raises(DataError):
        Dataset.open(folder)


def test_an_empty_split_is_refused_by_name(tmp_path: Path) -> None:
    partial = prepared.partial_folder(tmp_path / "data")
    prepared.write_part(partial, "train", 0, {"one": np.arange(3)})
    with pytest.raises(DataError, match="the validation split has no rows"):
        prepared.finish(partial, tmp_path / "data", fingerprint="x", source={}, encoding={}, sample={})


def test_several_that_finish_the_same_dataset_at_once_leave_one_good_folder(tmp_path: Path) -> None:
    start, made, failed = threading.Barrier(4), [], []

    def one() -> None:
        start.wait()
        try:
            made.append(make(tmp_path / "data"))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(made) == 4
    assert os.listdir(tmp_path) == ["data"]
    np.testing.assert_array_equal(Dataset.open(tmp_path / "data").train.take(np.arange(37))["one"], COLUMNS["one"])


def test_a_folder_that_cannot_be_put_in_place_is_told_by_its_cause(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the dataset should stand")
    with pytest.raises((OSError, DataError), match=r"[Nn]ot a directory|exists"):
        make(tmp_path / "data")
