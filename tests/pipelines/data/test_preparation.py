"""From a source to a prepared dataset: found again by what it was made of, refused whole or made whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data import dataset as datasets
from pipelines.data import preparation
from pipelines.data.dataset import Dataset
from pipelines.data.splits import SPLITS, split_of
from pipelines.errors import RecipeError
from pipelines.run_settings import Run
from tests import runs
from tests.idx import pictures, write_idx
from tests.made import folders_in
from tests.s3 import s3
from workloads.base import DataError

__all__ = ["s3"]
ROWS = 3000
SMALL = ("train.batch=16", "train.steps=3")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "source", *pictures(ROWS))


def load(folder: Path, source: Path | str, *overrides: str) -> Run:
    return runs.load(folder / "storage", f"data.source={source}", *SMALL, *overrides)


def make(run: Run) -> Dataset:
    return preparation.prepare(run, preparation.plan(run), preparation.in_process)


def refusal(run: Run) -> str:
    """The sentence of the DataError; nothing may be left where datasets are kept."""
    with pytest.raises(DataError) as error:
        make(run)
    assert kept(run) == [], "a failed attempt left something behind"
    return str(error.value)


def kept(run: Run) -> list[str]:
    """What is where datasets are kept, but for what is remembered of files."""
    place = run.root / "datasets"
    return sorted({path.name for path in place.glob("*")} - {".hashes.json", ".parsed"})


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
    monkeypatch.setattr(preparation, "_PIECE_ROWS", 700)  # the last piece is short, and no piece ends with a block of the splits
    run = load(tmp_path / "b", images)
    pieces = preparation.prepare(run, preparation.plan(run), lambda work, given: [work(piece) for piece in reversed(given)][::-1])
    assert pieces.manifest.rows == whole.manifest.rows
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(pieces, split), getattr(whole, split)
        for name, column in ours.take(np.arange(len(ours))).items():
            np.testing.assert_array_equal(column, theirs.take(np.arange(len(theirs)))[name])
    assert pieces.manifest.encoding["mean"] == pytest.approx(whole.manifest.encoding["mean"], rel=1e-12)


def test_preparing_again_finds_the_dataset_and_rewrites_nothing(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    first = make(run)
    written = {path.name: path.stat().st_mtime_ns for path in first.folder.glob("*.arrow")}  # that of the manifest tells of its use
    found = preparation.plan(run)
    again = preparation.prepare(run, found, preparation.in_process)
    assert found.ready
    assert again.folder == first.folder
    assert {path.name: path.stat().st_mtime_ns for path in again.folder.glob("*.arrow")} == written
    assert kept(run) == [found.fingerprint]


@pytest.mark.parametrize(
    "override", ["data.seed=1", "data.splits={train: 0.6, validation: 0.2, test: 0.2}", "model.classes=['0', '1', '2', '3']"]
)
def test_what_changes_the_rows_changes_the_fingerprint(tmp_path: Path, images: Path, override: str) -> None:
    assert preparation.plan(load(tmp_path, images, override)).fingerprint != preparation.plan(load(tmp_path, images)).fingerprint


def test_other_bytes_in_the_source_change_the_fingerprint(tmp_path: Path, images: Path) -> None:
    before = preparation.plan(load(tmp_path, images)).fingerprint
    pixels, labels = pictures(ROWS)
    pixels[0, 0, 0] ^= 1
    write_idx(images.parent, pixels, labels)
    assert preparation.plan(load(tmp_path, images)).fingerprint != before


@pytest.mark.parametrize("override", ["model.filters=7", "model.dropout=0.5", "train.batch=32", "optim.lr=0.1", "train.seed=3"])
def test_what_changes_only_the_training_keeps_the_fingerprint(tmp_path: Path, images: Path, override: str) -> None:
    assert preparation.plan(load(tmp_path, images, override)).fingerprint == preparation.plan(load(tmp_path, images)).fingerprint


def test_a_label_outside_the_classes_names_its_row(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_PIECE_ROWS", 1000)
    pixels, labels = pictures(ROWS)
    labels[2345] = 9
    write_idx(images.parent, pixels, labels)
    sentence = refusal(load(tmp_path, images, "model.classes=['0', '1', '2']"))
    assert sentence == "t-images-idx3-ubyte.gz, row 2,345: column label: 9 is outside the classes 0, 1, 2"


def test_a_class_that_only_the_test_rows_have_names_its_row(tmp_path: Path, images: Path) -> None:
    pixels, labels = pictures(ROWS)
    row = int(np.flatnonzero(split_of(0, ROWS, shares=(0.8, 0.1, 0.1), seed=0) == 2)[5])
    labels[row] = 9
    write_idx(images.parent, pixels, labels)
    assert (
        refusal(load(tmp_path, images, "data.splits.stratify=false"))
        == f"t-images-idx3-ubyte.gz, row {row:,}: column label: 9 is outside the classes 0, 1, 2"
    )


def test_data_of_one_class_are_refused(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "source", pictures(ROWS)[0], np.full(ROWS, 4, np.uint8))
    assert "needs two classes, but every training row is labelled '4'" in refusal(load(tmp_path, images))


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "source", *pictures(40))
    shares = "data.splits={train: 0.998, validation: 0.001, test: 0.001, stratify: false}"
    assert "split has no rows" in refusal(load(tmp_path, images, shares))


@pytest.mark.parametrize("rows", [0, 1, 15])
def test_a_batch_larger_than_the_training_rows_is_refused(tmp_path: Path, rows: int) -> None:
    images = write_idx(tmp_path / "source", *pictures(rows))
    with pytest.raises(RecipeError, match=r"train\.batch=16 is larger than the \d+ training examples"):
        preparation.plan(load(tmp_path, images))


@pytest.mark.parametrize("lost", [9, 100, 30_000])
def test_a_truncated_source_leaves_nothing_behind(tmp_path: Path, images: Path, lost: int) -> None:
    images.write_bytes(images.read_bytes()[:-lost])
    assert refusal(load(tmp_path, images)).startswith("t-images-idx3-ubyte.gz: a truncated or damaged gzip file")


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)

    def interrupted(work: object, pieces: object) -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(run, preparation.plan(run), interrupted)
    assert kept(run) == []


def test_a_damaged_dataset_is_refused_with_the_way_out(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    dataset = make(run)
    (dataset.folder / "test-00000.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"test-00000\.arrow: 0 bytes.*; delete the folder to prepare it anew"):
        make(run)


def test_a_dataset_whose_manifest_is_lost_is_made_anew(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    folder = make(run).folder
    (folder / "manifest.json").unlink()
    assert len(make(run).train) == 2400


def test_counting_the_rows_agrees_with_the_dataset(tmp_path: Path, images: Path) -> None:
    run = load(tmp_path, images)
    assert preparation.count(run, preparation.plan(run)) == make(run).manifest.rows == {"train": 2400, "validation": 300, "test": 300}


# ---- tables

LINES = 240


def table(path: Path, rows: int = LINES, *, first: int = 0, **more: list[object]) -> Path:
    """A CSV file whose row k has x = k and a label by turns; its columns are x, label and `more`."""
    columns = {"x": range(first, first + rows), "label": ["benign", "malignant"] * rows, **more}
    lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=False)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(columns), *lines, ""]))
    return path


def of_table(folder: Path, source: Path | None, *overrides: str, recipe: str = "mlp_binary") -> Run:
    text = f"data.source={source or 'null'}"
    return runs.load(folder / "storage", text, "train.batch=8", "train.epochs=1", "model.features=[x]", *overrides, recipe=recipe)


def rows_of(dataset: Dataset) -> list[list[int]]:
    """The rows of each split, told by x = row."""
    splits = (rows.take(np.arange(len(rows)))["features"] for rows in (dataset.train, dataset.validation, dataset.test))
    return [features.reshape(-1).round().astype(int).tolist() for features in splits]


def test_a_column_divides_the_rows(tmp_path: Path) -> None:
    part = ["train", "Test", "train", "val", "training"] * 48
    dataset = make(of_table(tmp_path, table(tmp_path / "t.csv", part=part), "data.splits.column=part"))
    numbers = {"train": 0, "training": 0, "val": 1, "Test": 2}
    assert rows_of(dataset) == [[row for row, name in enumerate(part) if numbers[name] == split] for split in range(3)]
    assert "part" not in dataset.manifest.columns


def test_rows_of_one_key_are_in_one_split_and_rows_added_move_none(tmp_path: Path) -> None:
    keys = [f"patient {row % 37}" for row in range(2 * LINES)]
    few, all_ = (
        rows_of(make(of_table(tmp_path / str(rows), table(tmp_path / str(rows) / "t.csv", rows, id=keys), "data.splits.key=id")))
        for rows in (LINES, 2 * LINES)
    )
    patients = [{row % 37 for row in split} for split in all_]
    assert sum(len(split) for split in patients) == len(set.union(*patients)) == 37
    assert few == [[row for row in split if row < LINES] for split in all_]


@pytest.mark.parametrize("given", [("train", "validation", "test"), ("train", "test"), ("train", "validation"), ("train",)])
def test_splits_given_as_files_are_theirs_and_the_others_are_cut_from_training(tmp_path: Path, given: tuple[str, ...]) -> None:
    files = {split: table(tmp_path / f"{split}.csv", 300, first=1000 * number) for number, split in enumerate(SPLITS) if split in given}
    shares = "data.splits={train: 0.6, validation: 0.2, test: 0.2}"
    found = dict(
        zip(SPLITS, rows_of(make(of_table(tmp_path, None, shares, *(f"data.{name}={path}" for name, path in files.items())))), strict=True)
    )
    for number, split in enumerate(SPLITS[1:], start=1):
        if split in given:
            assert found[split] == list(range(1000 * number, 1000 * number + 300))
    cut = [found["train"], *(found[split] for split in SPLITS[1:] if split not in given)]
    assert sorted(row for rows in cut for row in rows) == list(range(300))
    assert len(found["train"]) == pytest.approx(300 * 0.6 / (0.6 + 0.2 * (len(cut) - 1)), abs=25)


def test_an_ordered_file_that_is_given_is_cut_in_order(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", 200)
    table(tmp_path / "test.csv", 100, first=1000)
    given = [f"data.{name}={tmp_path / name}.csv" for name in ("train", "test")]
    model = ["model.window=10", "model.horizon=3", "model.season=5", "model.time=null", "model.targets=[x]", "model.series=[x]"]
    run = runs.load(tmp_path / "storage", "data.source=null", *given, "train.batch=8", *model, recipe="lstm")
    dataset = make(run)
    mean, deviation = dataset.manifest.encoding["mean"][0], dataset.manifest.encoding["deviation"][0]
    splits = (rows.take(np.arange(len(rows)))["values"] for rows in (dataset.train, dataset.validation, dataset.test))
    found = [(values.reshape(-1) * deviation + mean).round().astype(int).tolist() for values in splits]
    cut = round(200 * 0.8 / 0.9)
    assert found == [list(range(cut)), list(range(cut - 10, 200)), list(range(1000, 1100))]
    assert dataset.manifest.summary.read == dataset.manifest.summary.used == 300


def test_a_rare_class_is_in_every_split_and_common_ones_are_drawn_as_ever(tmp_path: Path) -> None:
    labels = ["benign", "malignant"] * 120
    for row in (200, 3, 77, 9):
        labels[row] = "rare"
    run = of_table(tmp_path, table(tmp_path / "t.csv", label=labels))
    found = rows_of(make(run))
    assert [sum(labels[row] == "rare" for row in rows) for rows in found] == [2, 1, 1]
    belongs = split_of(0, LINES, shares=(0.6, 0.2, 0.2), seed=0)
    assert all(belongs[row] == split for split, rows in enumerate(found) for row in rows if labels[row] != "rare")


def test_stratified_splits_hold_each_class_by_its_share(tmp_path: Path) -> None:
    labels = (["benign"] * 3 + ["malignant"]) * 60
    dataset = make(of_table(tmp_path, table(tmp_path / "t.csv", label=labels), "data.splits.stratify=true"))
    assert dataset.manifest.summary.classes == {
        "train": {"benign": 108, "malignant": 36},
        "validation": {"benign": 36, "malignant": 12},
        "test": {"benign": 36, "malignant": 12},
    }


def test_splits_are_left_to_chance_where_that_is_asked_for(tmp_path: Path) -> None:
    labels = ["benign", "malignant"] * 120
    labels[3] = labels[9] = labels[77] = "rare"
    found = rows_of(
        make(
            of_table(
                tmp_path, table(tmp_path / "t.csv", label=labels), "data.splits.stratify=false", "model.classes=[benign, malignant, rare]"
            )
        )
    )
    belongs = split_of(0, LINES, shares=(0.6, 0.2, 0.2), seed=0)
    assert found == [np.flatnonzero(belongs == split).tolist() for split in range(3)]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.features=[y]"], "there is no column 'y'; columns: x, label, diagnosis, id"),
        (["data.columns.label=diagnoses"], "data.columns: there is no column 'diagnoses'"),
        (["data.splits.column=prat"], "there is no column 'prat'"),
        (["data.splits.key=idd"], "there is no column 'idd'; did you mean"),
        (["model.features=[diagnosys]"], "did you mean data.columns.diagnosys=diagnosis?"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, overrides: list[str], sentence: str) -> None:
    source = table(tmp_path / "t.csv", diagnosis=["a", "b"] * LINES, id=list(range(LINES)))
    with pytest.raises(DataError) as error:
        preparation.plan(of_table(tmp_path, source, *overrides))
    assert sentence in str(error.value)
    assert "columns: x, label, diagnosis, id" in str(error.value)


def test_columns_have_the_names_that_the_recipe_gives_them(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", diagnosis=["a", "b", "c"] * LINES)
    dataset = make(of_table(tmp_path, source, "data.columns.label=diagnosis"))
    assert dataset.manifest.encoding["classes"] == ["a", "b", "c"]
    assert "a" in dataset.sample["label"].tolist()


# ---- bad rows


def bad_table(path: Path) -> Path:
    """Three rows that a reader cannot read (two, four and five values) and two that the task cannot use."""
    lines = table(path).read_text().splitlines()
    for row, line in {20: "20", 21: "21,benign,x", 100: "1,2,3,4", 60: "1e300,benign", 61: "-1e300,benign"}.items():
        lines[row + 1] = line
    path.write_text("\n".join([*lines, ""]))
    return path


def test_where_every_row_is_left_out_there_are_no_training_rows(tmp_path: Path) -> None:
    source = tmp_path / "t.csv"
    source.write_text("x,label\n" + "inf,a\n" * 40)
    run = of_table(tmp_path, source, "data.on_bad_row=skip", "data.max_bad_fraction=0.9")
    assert "there are no training rows\nleft out: t.csv, row 0: column x: inf is too large" in refusal(run)
    with pytest.raises(DataError, match="there are no training rows"):
        preparation.peek(run, preparation.plan(run))


def test_bad_rows_are_left_out_counted_and_told_and_the_sums_close(tmp_path: Path) -> None:
    summary = make(of_table(tmp_path, bad_table(tmp_path / "t.csv"), "data.on_bad_row=skip", "data.max_bad_fraction=0.05")).manifest.summary
    assert (summary.read, summary.used, summary.skipped) == (240, 235, 5)
    assert sum(summary.splits.values()) == 235
    assert [example.split(":")[0] for example in summary.examples] == [f"t.csv, row {row}" for row in (20, 21, 100, 60, 61)]


def test_more_bad_rows_than_allowed_stop_it(tmp_path: Path) -> None:
    run = of_table(tmp_path, bad_table(tmp_path / "t.csv"), "data.on_bad_row=skip", "data.max_bad_fraction=0.02")
    sentence = refusal(run)
    assert f"{run.data.name}: 5 of 240 rows cannot be used, more than data.max_bad_fraction=0.02 allows; the first of them:" in sentence
    assert len(sentence.splitlines()) == 6


def test_a_dataset_made_under_a_laxer_limit_is_refused_too(tmp_path: Path) -> None:
    source = bad_table(tmp_path / "t.csv")
    make(of_table(tmp_path, source, "data.on_bad_row=skip", "data.max_bad_fraction=0.05"))
    strict = of_table(tmp_path, source, "data.on_bad_row=skip", "data.max_bad_fraction=0.02")
    assert preparation.plan(strict).ready
    with pytest.raises(DataError, match=r"5 of 240 rows cannot be used"):
        make(strict)


def test_bad_rows_are_errors_where_nothing_else_is_said(tmp_path: Path) -> None:
    assert "t.csv, row 20: " in refusal(of_table(tmp_path, bad_table(tmp_path / "t.csv")))


def test_no_row_of_a_series_can_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.on_bad_row=skip: rows of a series follow one another in time"):
        preparation.plan(runs.load(tmp_path, "data.on_bad_row=skip", recipe="lstm"))


@pytest.mark.parametrize("override", ["data.splits.key=hour", "data.splits.stratify=true"])
def test_rows_that_have_an_order_cannot_be_drawn(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="consecutive parts"):
        preparation.plan(runs.load(tmp_path, override, recipe="lstm"))


# ---- changes under way


def replaced(path: Path) -> None:
    path.write_bytes(table(path.with_name("other.csv"), first=1).read_bytes())


def grown(path: Path) -> None:
    path.write_text(path.read_text() + "1,benign\n")


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("change", [replaced, grown, Path.unlink])
def test_a_source_that_changes_while_it_is_prepared_is_refused(tmp_path: Path, change: Callable[[Path], None], late: bool) -> None:
    source = table(tmp_path / "t.csv")
    run = of_table(tmp_path, source)

    def meanwhile(work: Callable[[object], object], pieces: Sequence[object]) -> list:
        if not late:
            change(source)
        done = [work(piece) for piece in pieces]
        if source.exists() and late:
            change(source)
        return done

    with pytest.raises(DataError, match=r"^t\.csv: "):
        preparation.prepare(run, preparation.plan(run), meanwhile)
    assert kept(run) == []


@pytest.mark.parametrize("remote", [False, True])
def test_preparations_at_once_end_with_the_same_and_leave_nothing_behind(s3: Any, tmp_path: Path, images: Path, remote: bool) -> None:
    s3.create_bucket(Bucket="raylway")
    place = [f"data.prepared=s3://raylway/{tmp_path.name}", f"data.cache={tmp_path / 'cache'}"] if remote else []
    run, together = load(tmp_path, images, *place), threading.Barrier(3, timeout=30)

    def at_once(work: Callable[[object], object], pieces: Sequence[object]) -> list:
        together.wait()
        return preparation.in_process(work, pieces)

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: preparation.prepare(run, preparation.plan(run), at_once), range(3)))
    assert len({dataset.folder for dataset in made}) == 1
    store = preparation.store_of(run.data, run.root)
    assert [name for name in folders_in(store) if name not in (".parsed",)] == [made[0].folder.name]
    assert [len(dataset.train) for dataset in made] == [2400] * 3


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_PIECE_ROWS", 700)
    monkeypatch.setattr(datasets, "SHARD_BYTES", 20_000)
    first, again = (make(load(tmp_path / name, images)).folder for name in ("first", "again"))
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {path.name: path.read_bytes() for path in again.iterdir()}
    assert first.name == again.name


def test_a_dataset_in_a_store_is_the_same_as_one_in_a_folder(tmp_path: Path, images: Path) -> None:
    here = make(load(tmp_path / "here", images)).folder
    place = f"data.prepared=memory://{tmp_path.name}-away"
    for node in ("one", "another"):
        run = load(tmp_path / node, images, place, f"data.cache={tmp_path / node / 'cache'}")
        assert preparation.plan(run).ready == (node == "another")
        there = make(run).folder
        assert there == tmp_path / node / "cache" / "datasets" / here.name
        assert {path.name: path.read_bytes() for path in there.iterdir()} == {path.name: path.read_bytes() for path in here.iterdir()}
        assert kept(run) == []


# ---- the name of a dataset


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.on_bad_row=skip"],
        ["data.splits.column=part"],
        ["data.splits.key=part"],
        ["data.splits.stratify=true"],
        ["data.splits.stratify=false"],
        ["data.seed=1"],
        ["data.columns.label=part"],
        ["data.mode=stream", "scale.workers=1"],
        ["model.features=[y]"],
    ],
)
def test_settings_that_decide_the_rows_decide_the_name(tmp_path: Path, overrides: list[str]) -> None:
    source = table(tmp_path / "t.csv", part=["train", "val", "test"] * LINES, y=[1, 2, 3] * LINES)
    plain, other = (preparation.plan(of_table(tmp_path, source, *given)).fingerprint for given in ([], overrides))
    assert plain != other


@pytest.mark.parametrize(
    "override",
    [
        "data.max_bad_fraction=0.5",
        "data.prepared=/elsewhere",
        "data.cache=/elsewhere",
        "scale.workers=0",
        "name=another",
        "scale.retries=1",
    ],
)
def test_settings_that_decide_no_row_do_not_decide_the_name(tmp_path: Path, override: str) -> None:
    source = table(tmp_path / "t.csv")
    plain, other = (preparation.plan(of_table(tmp_path, source, *given)).fingerprint for given in ([], [override]))
    assert plain == other


def test_the_same_file_is_another_dataset_as_another_split(tmp_path: Path) -> None:
    first, second = table(tmp_path / "a.csv"), table(tmp_path / "b.csv", first=500)
    names = {
        preparation.plan(of_table(tmp_path, None, *(f"data.{split}={path}" for split, path in given.items()))).fingerprint
        for given in (
            {"train": first, "test": second},
            {"train": second, "test": first},
            {"train": first, "validation": second},
            {"train": first},
        )
    }
    names.add(preparation.plan(of_table(tmp_path, first)).fingerprint)
    assert len(names) == 5


def test_where_a_file_lies_does_not_decide_the_name(tmp_path: Path) -> None:
    here, there = (preparation.plan(of_table(tmp_path, table(tmp_path / folder / "t.csv"))).fingerprint for folder in ("a", "b"))
    assert here == there


# ---- samples and streams


def test_the_sample_is_as_long_as_the_task_asks_however_small_the_files(tmp_path: Path) -> None:
    for number in range(60):
        table(tmp_path / "files" / f"{number:02}.csv", 5, first=5 * number)
    dataset = make(of_table(tmp_path, tmp_path / "files" / "*.csv"))
    assert dataset.sample["x"].tolist() == rows_of(dataset)[0][:8]


def test_a_stream_keeps_a_few_training_rows_and_counts_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_PIECE_ROWS", 5)
    for number in range(8):
        table(tmp_path / "files" / f"{number}.csv", 30, first=30 * number)
    source = tmp_path / "files"
    cached = make(of_table(tmp_path, source))
    run = of_table(tmp_path, source, "data.mode=stream", "scale.workers=1")
    plan = preparation.plan(run)
    dataset = preparation.prepare(run, plan, preparation.in_process)
    assert rows_of(dataset)[1:] == rows_of(cached)[1:]
    assert rows_of(dataset)[0] == [row for row in rows_of(cached)[0] if row < 30]
    assert dataset.manifest.summary.splits == cached.manifest.summary.splits
    assert preparation.examples(run, dataset)["train"] == len(cached.train)
    read, pieces = preparation.streamed(run, plan, dataset)
    arrived = [arrays["features"] for piece in pieces for arrays in read(piece)]
    assert len(pieces) > 1
    assert np.concatenate(arrived).reshape(-1).astype(int).tolist() == rows_of(cached)[0]


def test_the_encoding_can_be_guessed_before_and_is_known_after(tmp_path: Path) -> None:
    run = of_table(tmp_path, table(tmp_path / "t.csv"))
    before = preparation.peek(run, preparation.plan(run))
    assert kept(run) == []
    assert make(run).manifest.encoding["classes"] == list(before.classes)
    assert preparation.peek(run, preparation.plan(run)).model_dump(mode="json") == make(run).manifest.encoding
