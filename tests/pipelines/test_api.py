"""The Python API: the command line's results, errors and runs, in the caller's own process."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

import pipelines
from pipelines import api
from pipelines.evaluation import statistics
from pipelines.training import checkpoint
from tests import forked
from tests.cli import CPU_QUICK, ROOT, finish, raylway, start, until

QUICK = {"scale.workers": 0, "scale.threads": 1}
SHORT = QUICK | {"train.steps": 6}
UNREGISTERED = SHORT | {"track.register": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    storage = tmp_path_factory.mktemp("api")
    (storage / "mlflow.db").write_bytes(empty_database.read_bytes())
    return storage


@pytest.fixture
def own(tmp_path, empty_database):
    """A folder whose storage `runs` is the test's own."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(empty_database.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def frame():
    table = load_breast_cancer(as_frame=True).frame
    return table.rename(columns={"target": "label"})


@pytest.fixture(scope="module")
def digits(place):
    """A short training of cnn on digits."""
    return api.train("cnn", SHORT, storage=place)


@pytest.fixture(scope="module")
def from_file(place, frame):
    """A training of mlp_binary on a CSV file."""
    frame.to_csv(place / "table.csv", index=False)
    return api.train("mlp_binary", SHORT, data=place / "table.csv", storage=place)


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    program = "import sys, pipelines; print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'rich', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_of_the_api_is_there():
    assert [name for name in pipelines.__all__ if not callable(getattr(pipelines, name))] == []
    assert all(issubclass(getattr(pipelines, name), Exception) for name in pipelines.__all__ if name[0].isupper())
    with pytest.raises(AttributeError):
        _ = pipelines.no_such_thing


def test_training_gives_the_numbers_of_the_command_and_its_run_is_the_commands(digits, place):
    code, told, err = raylway("train", "cnn", "train.steps=6", *CPU_QUICK, f"storage={place}", "--json", cwd=place)
    assert code == 0, err
    assert "is finished already" in err
    assert told == dict(digits.json)
    assert dataclasses.asdict(digits.registered) == told["model"]
    assert (digits.run_id, digits.steps, digits.metrics) == (told["run_id"], 6, told["metrics"])


def test_a_result_gives_the_network_with_its_weights(digits):
    assert checkpoint.weights_sha256(digits.model()) == digits.weights_sha256


def test_rows_in_memory_are_predicted_as_the_command_predicts_a_file(from_file, frame, place, tmp_path):
    predicted = from_file.predict(frame[:40])
    frame[:40].to_csv(tmp_path / "rows.csv", index=False)
    code, _, err = raylway("predict", from_file.run_name, "rows.csv", "out.parquet", f"storage={place}", cwd=tmp_path)
    assert code == 0, err
    pd.testing.assert_frame_equal(predicted, pd.read_parquet(tmp_path / "out.parquet"))
    pd.testing.assert_frame_equal(predicted, api.predict(from_file.run_name, tmp_path / "rows.csv", storage=place))
    written = api.predict(from_file, tmp_path / "rows.csv", tmp_path / "again.parquet")
    assert (written.rows_in, written.rows_out, list(written.columns)) == (40, 40, list(predicted.columns))
    assert not list(place.glob(".predict-*"))


@pytest.mark.parametrize(
    ("arguments", "settings", "kind"),
    [
        (["cnn", "optim.lrr=1"], {"optim.lrr": 1}, "RecipeError"),
        (["cnn", "data.source=nowhere.gz"], {"data.source": "nowhere.gz"}, "DataError"),
        (["cnn", "track.uri=file:///runs"], {"track": {"uri": "file:///runs"}}, "StorageError"),
        (["cnn", "scale.workers=2", "scale.cpus=999"], {"scale": {"workers": 2, "cpus": 999}}, "ClusterError"),
    ],
)
def test_errors_have_the_texts_of_the_command_line(arguments, settings, kind, tmp_path):
    error = raylway("train", *arguments, "--json", cwd=tmp_path)[1]["error"]
    with pytest.raises(getattr(pipelines, kind)) as raised:
        api.train(arguments[0], settings, storage=tmp_path / "runs")
    assert f"error: {raised.value}".splitlines()[0] == error


def test_a_diverging_training_raises_and_the_process_lives(own):
    with pytest.raises((pipelines.Diverged, pipelines.WorkerFailed), match=r"the loss is nan at step 10; a lower optim\.lr"):
        api.train("cnn", QUICK | {"optim.name": "sgd", "optim.lr": 1e30}, storage=own / "runs")


def test_signal_handlers_stay_as_they_are(digits, place):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    api.train("cnn", SHORT, storage=place)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_away_from_a_terminal_a_training_prints_a_few_plain_lines(place, capfd):
    api.train("cnn", UNREGISTERED | {"train.seed": 3}, storage=place)
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err
    assert sum(line.startswith("step ") for line in out.splitlines()) <= 1
    assert len(out.splitlines()) < 20


def test_a_command_resumes_what_the_api_began(own):
    program = (
        "from pipelines import train\n"
        "train('cnn', {'scale': {'workers': 0, 'threads': 1}, 'train.epochs': 400, 'train.checkpoint_every': 20}, storage='runs')\n"
    )
    (own / "a_script.py").write_text(program)
    process = forked.Command("a_script", [], cwd=own, env=os.environ | {"PYTHONPATH": str(ROOT)})
    until(lambda: list(own.glob("runs/cnn/*/checkpoints/step-*")), process, seconds=100)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err, (process.returncode, out)
    [folder] = own.glob("runs/cnn/*")
    kept = {path.name for path in folder.glob("checkpoints/step-*")}
    command = start(["train", "cnn", "train.epochs=400", "train.checkpoint_every=20", *CPU_QUICK], cwd=own)
    until(lambda: {path.name for path in folder.glob("checkpoints/step-*")} - kept, command)
    command.send_signal(signal.SIGINT)
    assert "resume with: raylway train cnn" in finish(command)[2]
    assert [each.name for each in own.glob("runs/cnn/*")] == [folder.name]
    with sqlite3.connect(own / "runs" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchall() == [(1,)]


@pytest.mark.parametrize("kind", ["DataFrame", "datasets.Dataset", "dict of columns"])
def test_a_table_in_memory_trains_as_its_file_does(from_file, frame, place, kind):
    if kind == "datasets.Dataset":
        datasets = pytest.importorskip("datasets")
        data = datasets.Dataset.from_pandas(frame, preserve_index=False)
    else:
        data = frame if kind == "DataFrame" else {name: frame[name].to_numpy() for name in frame}
    result = api.train("mlp_binary", UNREGISTERED, data=data, storage=place)
    assert result.weights_sha256 == from_file.weights_sha256
    assert result.metrics["test/accuracy"] == from_file.metrics["test/accuracy"]
    again = api.train("mlp_binary", UNREGISTERED, data=data, storage=place)
    assert result.run_id == again.run_id  # finished: the same data is the same run


def test_pictures_in_memory_train_as_the_digits_do(digits, place):
    images = load_digits()
    rows = {"image": images.images.astype(np.uint8), "label": images.target}
    result = api.train("cnn", UNREGISTERED, data=rows, storage=place)
    assert result.weights_sha256 == digits.weights_sha256
    answers = result.predict({"image": rows["image"][:7]})
    assert len(answers) == 7


def test_splits_in_memory_stay_the_splits_they_are(frame, place):
    splits = {"train": frame[:300], "validation": frame[300:400], "test": frame[400:]}
    found = api.prepare("mlp_binary", QUICK, data=splits, storage=place)
    assert found["rows"] == {"train": 300, "validation": 100, "test": 169}


def test_a_wrong_setting_is_told_before_anything_is_written(frame, tmp_path):
    with pytest.raises(pipelines.RecipeError, match=r"did you mean optim\.lr\?"):
        api.train("mlp_binary", {"optim.lrr": 1}, data=frame, storage=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_model_is_judged_compared_and_promoted(from_file, frame, place, monkeypatch):
    monkeypatch.setattr(statistics, "_DEAR_RESAMPLES", 40)  # most of what judging takes
    other = api.train("mlp_binary", SHORT | {"train.seed": 5}, data=place / "table.csv", storage=place)
    judged = api.evaluate(from_file, data=frame, slices=["label"])
    assert judged.rows == len(frame)
    assert set(judged.slices) == {"label"}
    compared = api.compare(from_file, other)
    assert [run["run_id"] for run in compared.runs] == [from_file.run_id, other.run_id]
    assert [each["name"] for each in compared.differences] == ["train.seed"]
    assert api.promote(other).decision in ("promoted", "refused")
    assert api.promote(other, force=True, reason="a test").champion == other.registered.version
    back = api.promote("mlp_binary", rollback=True, storage=place)
    assert (back.decision, back.champion) == ("rolled back", from_file.registered.version)


def test_a_search_gives_its_best_trial(place):
    found = api.sweep("cnn", SHORT, space={"optim.lr": "loguniform(1e-4, 1e-2)"}, trials=2, storage=place)
    assert (found.status, len(found.trials), found.registered) == ("finished", 2, None)
    assert found.best in found.trials
