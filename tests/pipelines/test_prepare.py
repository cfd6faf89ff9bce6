"""From a source to a prepared dataset: found again by what it was made of, refused whole or made whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines import prepare
from pipelines.data.prepared import Dataset
from pipelines.data.splits import split_of
from pipelines.errors import RecipeError
from pipelines.settings import Run
from tests import runs
from tests.idx import pictures, write_idx
from workloads.base import DataError

ROWS = 3000
SMALL = ("train.batch=16", "train.steps=3")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "source", *pictures(ROWS))


def load(folder: Path, source: Path | str, *overrides: str) -> Run:
    return runs.load(folder / "storage", f"data.source={source}", *SMALL, *overrides)


def make(run: Run) -> Dataset:
    return prepare.prepare(run, prepare.plan(run), prepare.in_process)


def refusal(run: Run) -> str:
    """The sentence of the DataError; nothing may be left where datasets are kept."""
    with pytest.raises(DataError) as error:
        make(run)
    assert not list(run.root.rglob("*.*")), "a failed attempt left something behind"
    assert not (run.root / "datasets").exists() or not os.listdir(run.root / "datasets")
    return str(error.value)


def test_each_split_holds_its_rows_of_the_source(tmp_path: Path, images: Path) -> None:
    dataset = make(load(tmp_path, images))
    pixels, labels = pictures(ROWS)
    belongs = split_of(0, ROWS, shares=(0.8, 0.1, 0.1), seed=0)
    for index, rows in enumerate((dataset.train, dataset.validation, dataset.test)):
        taken = rows.take(np.arange(len(rows)))
        np.testing.assert_array_equal(taken["image"][:, 0], pixels[belongs == index])
        np.testing.assert_array_equal(taken["label"], labels[belongs == index])


def test_the_encoding_is_learnt_from_the_training_rows_alone(tmp_path: Path, images: Path) -> None:
    dataset = make(load(tmp_path, images))
    training = pictures(ROWS)[0][split_of(0, ROWS, shares=(0.8, 0.1, 0.1), seed=0) == 0]
    encoding = dataset.manifest.encoding
    assert encoding["classes"] == ["0", "1", "2"]
    assert tuple(encoding["shape"]) == (1, 6, 5)
    assert encoding["mean"] == pytest.approx([training.mean()], rel=1e-12)
    assert encoding["deviation"] == pytest.approx([training.std()], rel=1e-9)


def test_pieces_worked_in_any_order_give_the_same_dataset(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(load(tmp_path / "a", images))
    monkeypatch.setattr(prepare, "_PIECE_ROWS", 700)  # the last piece is short, and no piece ends with a block of the splits
    run = load(tmp_path / "b", images)
    pieces = prepare.prepare(run, prepare.plan(run), lambda work, given: [work(piece) for piece in reversed(given)][::-1])
    assert pieces.manifest.rows == whole.manifest.rows
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(pieces, split), getattr(whole, split)
        for name, column in ours.take(np.arange(len(ours))).items():
            np.testing.assert_array_equal(column, theirs.take(np.arange(len(theirs)))[name])
    assert pieces.manifest.encoding["mean"] == pytest.approx(whole.manifest.encoding["mean"], rel=1e-12)


def test_preparing_again_finds_the_dataset_and_rewrites_nothing(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    first = make(run)
    written = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    found = prepare.plan(run)
    again = prepare.prepare(run, found, prepare.in_process)
    assert found.ready
    assert again.folder == first.folder
    assert {path.name: path.stat().st_mtime_ns for path in again.folder.iterdir()} == written
    assert os.listdir(run.root / "datasets") == [found.fingerprint]


@pytest.mark.parametrize(
    "override", ["data.seed=1", "data.splits={train: 0.6, validation: 0.2, test: 0.2}", "model.classes=['0', '1', '2', '3']"]
)
def test_what_changes_the_rows_changes_the_fingerprint(tmp_path: Path, images: Path, override: str) -> None:
    assert prepare.plan(load(tmp_path, images, override)).fingerprint != prepare.plan(load(tmp_path, images)).fingerprint


def test_other_bytes_in_the_source_change_the_fingerprint(tmp_path: Path, images: Path) -> None:
    before = prepare.plan(load(tmp_path, images)).fingerprint
    pixels, labels = pictures(ROWS)
    pixels[0, 0, 0] ^= 1
    write_idx(images.parent, pixels, labels)
    assert prepare.plan(load(tmp_path, images)).fingerprint != before


@pytest.mark.parametrize("override", ["model.filters=7", "model.dropout=0.5", "train.batch=32", "optim.lr=0.1", "train.seed=3"])
def test_what_changes_only_the_training_keeps_the_fingerprint(tmp_path: Path, images: Path, override: str) -> None:
    assert prepare.plan(load(tmp_path, images, override)).fingerprint == prepare.plan(load(tmp_path, images)).fingerprint


def test_a_label_outside_the_classes_names_its_row(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_PIECE_ROWS", 1000)
    pixels, labels = pictures(ROWS)
    labels[2345] = 9
    write_idx(images.parent, pixels, labels)
    sentence = refusal(load(tmp_path, images, "model.classes=['0', '1', '2']"))
    assert sentence == "t-images-idx3-ubyte, row 2,345: column label: 9 is outside the classes 0, 1, 2"


def test_a_class_that_only_the_test_rows_have_names_its_row(tmp_path: Path, images: Path) -> None:
    pixels, labels = pictures(ROWS)
    row = int(np.flatnonzero(split_of(0, ROWS, shares=(0.8, 0.1, 0.1), seed=0) == 2)[5])
    labels[row] = 9
    write_idx(images.parent, pixels, labels)
    assert refusal(load(tmp_path, images)) == f"t-images-idx3-ubyte, row {row:,}: column label: 9 is outside the classes 0, 1, 2"


def test_data_of_one_class_are_refused(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "source", pictures(ROWS)[0], np.full(ROWS, 4, np.uint8))
    assert "needs two classes, but every training row is labelled '4'" in refusal(load(tmp_path, images))


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "source", *pictures(40))
    shares = "data.splits={train: 0.998, validation: 0.001, test: 0.001}"
    assert "split has no rows" in refusal(load(tmp_path, images, shares))


@pytest.mark.parametrize("rows", [0, 1, 15])
def test_a_batch_larger_than_the_training_rows_is_refused(tmp_path: Path, rows: int) -> None:
    images = write_idx(tmp_path / "source", *pictures(rows))
    with pytest.raises(RecipeError, match=r"train\.batch=16 is larger than the \d+ training examples"):
        prepare.plan(load(tmp_path, images))


@pytest.mark.parametrize("lost", [9, 100, 30_000])
def test_a_truncated_source_leaves_nothing_behind(tmp_path: Path, images: Path, lost: int) -> None:
    images.write_bytes(images.read_bytes()[:-lost])
    assert refusal(load(tmp_path, images)).startswith("t-images-idx3-ubyte.gz: a truncated or damaged gzip file")


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)

    def interrupted(work: object, pieces: object) -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(run, prepare.plan(run), interrupted)
    assert os.listdir(run.root / "datasets") == []


def test_a_damaged_dataset_is_refused_with_the_way_out(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    dataset = make(run)
    (dataset.folder / "test.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"test\.arrow: 0 bytes.*; delete the folder to prepare it anew"):
        make(run)


def test_a_dataset_whose_manifest_is_lost_is_made_anew_or_refused_with_the_way_out(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    folder = make(run).folder
    (folder / "manifest.json").unlink()
    try:
        told = f"{len(make(run).train)} training rows"
    except DataError as error:
        told = str(error)
    assert told == "2400 training rows" or "delete the folder" in told


def test_counting_the_rows_agrees_with_the_dataset(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    assert prepare.count(run, prepare.plan(run)) == make(run).manifest.rows == {"train": 2400, "validation": 300, "test": 300}
