"""The prepared datasets of a storage are made, shown and freed, and nothing else is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.data import preparation
from pipelines.data.dataset import MANIFEST, Dataset
from pipelines.errors import StorageError
from pipelines.run_settings import Run
from pipelines.screen import Screen
from pipelines.verbs import prepare
from tests import damage, runs
from tests.idx import pictures, write_idx

DAY = 86_400


def load(folder: Path, *overrides: str) -> Run:
    source = folder / "source" / "t-images-idx3-ubyte.gz"
    if not source.exists():
        write_idx(source.parent, *pictures(1000))
    return runs.load(folder / "storage", f"data.source={source}", "train.batch=16", "train.steps=3", "scale.workers=0", *overrides)


def make(folder: Path, *overrides: str) -> Dataset:
    run = load(folder, *overrides)
    return preparation.prepare(run, preparation.plan(run), preparation.in_process)


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def left(folder: Path, *, days: float) -> set[str]:
    """What is in the folder of datasets once it was pruned; what was said to be freed must be gone."""
    place = folder / "storage" / "datasets"
    before = {str(path.relative_to(place)) for path in place.rglob("*")}
    told = prepare.pruned(str(folder / "storage"), Screen(), days=days)
    after = {str(path.relative_to(place)) for path in place.rglob("*")}
    gone = {path for path in before - after if path.rpartition("/")[0] not in before - after}
    assert {Path(path).name for path in gone} == {one["name"] for one in told["freed"]}
    return {path.name for path in place.iterdir()}


# ---- made


def test_preparing_tells_what_was_made_and_that_it_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load(tmp_path)
    first, again = (prepare.prepared(run, Screen()) for _ in range(2))
    said = capsys.readouterr().out
    assert (first["found"], again["found"]) == (False, True)
    assert first["rows"] == again["rows"] == {"train": 800, "validation": 100, "test": 100}
    assert first["summary"]["read"] == 1000
    assert first["folder"] == str(tmp_path / "storage" / "datasets" / first["fingerprint"])
    assert "800 train, 100 validation, 100 test" in said
    assert f"dataset {first['fingerprint']} is prepared" in said
    assert f"dataset {first['fingerprint']} was prepared already" in said


def test_rows_left_out_and_rows_that_are_in_training_and_test_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{row % 7},{'a' if row % 2 else 'b'}" for row in range(200)]
    lines[30] = "1e300,a"
    (tmp_path / "t.csv").write_text("\n".join(["x,label", *lines, ""]))
    chosen = [f"data.source={tmp_path / 't.csv'}", "data.on_bad_row=skip", "train.batch=8", "scale.workers=0"]
    told = prepare.prepared(runs.load(tmp_path / "storage", *chosen, recipe="mlp_binary"), Screen())
    said = capsys.readouterr().out
    assert "200 rows read = 199 used + 1 skipped" in said
    assert "t.csv, row 30: column x: 1e+300 is too large" in said
    leaked = told["summary"]["leaked"]
    assert leaked == told["summary"]["splits"]["test"] > 0
    assert f"warning: {leaked} of {leaked} test rows have the same input as a training row" in said


def test_a_storage_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    run = load(tmp_path)
    (tmp_path / "storage").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        prepare.prepared(run, Screen())


# ---- shown


def test_datasets_are_listed_by_when_they_were_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = make(tmp_path), make(tmp_path, "data.seed=1")
    age(old.folder / MANIFEST, 3)
    told = prepare.listed(str(tmp_path / "storage"), Screen())
    assert [one["fingerprint"] for one in told["datasets"]] == [new.folder.name, old.folder.name]
    assert [one["rows"] for one in told["datasets"]] == [1000, 1000]
    assert [round(one["unused_days"], 1) for one in told["datasets"]] == [0, 3]
    size = sum(path.stat().st_size for dataset in (old, new) for path in dataset.folder.iterdir())
    assert told["bytes"] == size == sum(one["bytes"] for one in told["datasets"])
    said = capsys.readouterr().out
    for text in (old.folder.name, new.folder.name, "t-images-idx3-ubyte.gz", "1,000", "unused days"):
        assert text in said


def test_using_a_dataset_makes_it_the_newest(tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    age(folder / MANIFEST, 30)
    make(tmp_path)
    assert prepare.listed(str(tmp_path / "storage"), Screen())["datasets"][0]["unused_days"] < 1


def test_a_storage_without_datasets_lists_none_and_frees_none(tmp_path: Path) -> None:
    assert prepare.listed(str(tmp_path / "nowhere"), Screen()) == {"datasets": [], "bytes": 0}
    assert prepare.pruned(str(tmp_path / "nowhere"), Screen(), days=0) == {"freed": [], "bytes": 0}
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_dataset_is_listed_as_such(tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    damage.truncate(folder / "test-00000.arrow")
    (one,) = prepare.listed(str(tmp_path / "storage"), Screen())["datasets"]
    assert (one["source"], one["rows"]) == ("damaged", 0)


# ---- freed


def test_only_datasets_that_were_not_used_for_so_long_are_freed(tmp_path: Path) -> None:
    made = {days: make(tmp_path, f"data.seed={days}").folder for days in (0, 6, 8)}
    for days, folder in made.items():
        age(folder / MANIFEST, days)
    assert left(tmp_path, days=7) >= {made[0].name, made[6].name}
    assert not made[8].exists()
    assert len(Dataset.open(made[6], proofs=tmp_path / "proofs").train) == 800


def test_what_is_freed_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path).folder
    size = sum(path.stat().st_size for path in folder.iterdir())
    parsed = {path.name: path.stat().st_size for path in (folder.parent / ".parsed").iterdir()}
    told = prepare.pruned(str(tmp_path / "storage"), Screen(), days=0)
    assert {one["name"]: one["bytes"] for one in told["freed"]} == {folder.name: size, **parsed}
    assert told["bytes"] == size + sum(parsed.values())
    assert f"freed {folder.name}: " in capsys.readouterr().out


def test_a_damaged_dataset_is_freed_whatever_its_age(tmp_path: Path) -> None:
    good, bad = make(tmp_path).folder, make(tmp_path, "data.seed=1").folder
    damage.delete(bad / "train-00000.arrow")
    assert good.name in left(tmp_path, days=7)
    assert not bad.exists()


def test_remains_of_stopped_preparations_are_freed_once_nobody_can_be_at_work(tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    remains = [folder.parent / name for name in (f".{folder.name}.1234abcd", ".parts.1234abcd", ".work.1234abcd")]
    for path in remains:
        path.mkdir()
        (path / "part").write_bytes(b"x" * 1000)
    assert {path.name for path in remains} <= left(tmp_path, days=7)
    for path in remains:
        age(path, 0.1)
    assert left(tmp_path, days=7) <= {folder.name, ".hashes.json", ".parsed"}


def test_a_dataset_that_lost_its_manifest_is_freed(tmp_path: Path) -> None:
    folder = make(tmp_path).folder
    damage.delete(folder / MANIFEST)
    assert folder.name not in left(tmp_path, days=7)


@pytest.mark.parametrize("kept", [".parsed", "hub"])
def test_copies_that_readers_made_are_freed_by_their_age(tmp_path: Path, kept: str) -> None:
    place = make(tmp_path).folder.parent / kept
    (place / "folder").mkdir(parents=True)
    for name in ("new.arrow", "old.arrow", "old.json", "folder/x"):
        (place / name).write_bytes(b"x")
    for name in ("old.arrow", "old.json", "folder"):
        age(place / name, 8)
    age(place, 8)
    assert kept in left(tmp_path, days=7)
    assert "new.arrow" in os.listdir(place)
    assert not {"old.arrow", "old.json", "folder"} & set(os.listdir(place))


def test_runs_and_remembered_hashes_and_the_source_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    others = [tmp_path / "storage" / name for name in ("datasets/.hashes.json", "cnn/a-run/config.yaml", "mlflow.db", "datasets/note.txt")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        age(path, 99)
    left(tmp_path, days=0)
    assert all(path.exists() for path in others)
    assert (tmp_path / "source" / "t-images-idx3-ubyte.gz").exists()
