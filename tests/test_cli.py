"""The command line's contract: exit codes, one clear sentence for each mistake, JSON as the last line."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import sqlite3

import numpy as np
import pytest

from pipelines import config
from pipelines.errors import code_of, is_resumable
from pipelines.screen import Screen
from pipelines.workflows import train_and_promote
from tests.cli import CPU_QUICK, ROOT, raylway
from tests.idx import write_idx


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    return write_idx(folder, rng.integers(0, 256, (1000, 12, 12), dtype=np.uint8), rng.integers(0, 3, 1000).astype(np.uint8))


def damaged(images, folder, *, cut: int = 0, labels: int | None = None):
    """A copy of the pair, its images cut after `cut` bytes, or with only `labels` labels."""
    names = [images, images.with_name(images.name.replace("images-idx3", "labels-idx1"))]
    copies = [shutil.copy(name, folder) for name in names]
    if cut:
        os.truncate(copies[0], cut)
    if labels is not None:
        content = gzip.decompress(names[1].read_bytes())
        (folder / names[1].name).write_bytes(gzip.compress(content[:4] + labels.to_bytes(4, "big") + content[8 : 8 + labels]))
    return folder / images.name


def test_each_mistake_costs_one_sentence_and_its_exit_code(images, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for arguments, code, sentence in [
        (["cnn", "optim.lrr=1"], 2, "optim.lrr: no such setting; did you mean optim.lr? (command line)"),
        (["cnn", "scale.workers=2", "scale.cpus=999"], 12, "scale.workers=2 x 999 CPUs = 1998, but the cluster has"),
        (["cnn", f"data.source={damaged(images, few, labels=900)}"], 13, "has 1,000 images, but t-labels-idx1-ubyte.gz has 900 labels"),
        (["cnn", "track.uri=http://127.0.0.1:9"], 12, "track.uri=http://127.0.0.1:9: no MLflow server answers"),
    ]:
        exit_code, result, err = raylway("train", *arguments, "--json", cwd=tmp_path)
        assert (exit_code, result["exit_code"]) == (code, code), (arguments, err)
        assert sentence in err
        assert sentence in result["error"]
        assert "Traceback" not in err
        assert "resume with" not in err  # nothing has begun
        assert len(err.splitlines()) <= 25
    assert datasets_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["cnnn"], 2, "cnnn: no such recipe; did you mean cnn?"),
        (["cnn", "train.batch=many"], 2, "train.batch: input should be a valid integer"),
        (["cnn", "train.batch=5000"], 2, "train.batch=5000 is larger than the 1,439 training examples of digits"),
        (["cnn", "name=../x"], 2, "name: '../x' is not a name"),
        (["cnn", "name=/x"], 2, "name: '/x' is not a name"),
        (["cnn", "data.source=nowhere.gz"], 13, "nowhere.gz: there is no such file"),
        (["cnn", "storage=file/runs"], 12, "cannot be written: Not a directory"),
        (["cnn", "track.uri=file:///runs"], 12, "not an MLflow address"),
    ],
)
def test_each_mistake_has_its_sentence_and_exit_code_before_anything_begins(arguments, code, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=re.escape(sentence)) as raised:
        train_and_promote(config.load(arguments[0], arguments[1:]), screen=Screen(as_json=True))
    assert code_of(raised.value) == code
    assert not is_resumable(raised.value)
    assert datasets_in(tmp_path) == []


def datasets_in(place):
    """What a preparation left, apart from what files were parsed to, which the next one takes up."""
    return sorted(path.name for path in place.glob("runs/datasets/*") if path.name != ".parsed")


def failed_with(place):
    """(status, stage, exit code, cause, description) of the only run that MLflow has, read from its database as it is."""
    with sqlite3.connect(place / "runs" / "mlflow.db") as database:
        [[status]] = database.execute("select status from runs").fetchall()
        tags = dict(database.execute("select key, value from tags").fetchall())
    return status, tags["stage"], tags["exit_code"], tags["cause"], tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("settings", "cut", "sentence"),
    [
        ([], 40_000, "t-images-idx3-ubyte.gz: a truncated or damaged gzip file"),
        (["model.classes=[0,1]"], 0, "column label: 2 is outside the classes 0, 1"),
    ],
)
def test_data_that_cannot_be_prepared_leaves_nothing_behind(images, place, settings, cut, sentence):
    source = damaged(images, place, cut=cut)
    code, result, err = raylway("train", "cnn", f"data.source={source}", *settings, *CPU_QUICK, "--json", cwd=place)
    assert (code, result["exit_code"]) == (13, 13), err
    assert sentence in err
    assert "Traceback" not in err
    assert datasets_in(place) == []
    if not cut:  # a damaged file is met before there is a run
        status, stage, exit_code, cause, page = failed_with(place)
        assert (status, stage, exit_code) == ("FAILED", "prepare", "13")
        assert sentence in cause
        assert sentence in page


def test_a_bug_in_a_workload_shows_its_own_line(place):
    for room in ("workloads", "pipelines", "cluster"):
        shutil.copytree(ROOT / room, place / room, ignore=shutil.ignore_patterns("__pycache__"))
    cnn = place / "workloads" / "cnn.py"
    cnn.write_text(cnn.read_text().replace("channels, height, width = encoding.shape", "channels, height = encoding.shape"))
    code, result, err = raylway("train", "cnn", *CPU_QUICK, "--json", cwd=place, PYTHONPATH=str(place))
    assert (code, result["exit_code"]) == (10, 10)
    assert "ValueError: too many values to unpack" in err
    assert "channels, height = encoding.shape" in err
    assert "resume with: raylway train cnn" in err
    assert len(err.splitlines()) <= 25 + 2  # the run's own first lines stand above
    status, stage, exit_code, cause, page = failed_with(place)
    assert (status, stage, exit_code) == ("FAILED", "train", "10")
    assert cause.startswith("ValueError: too many values to unpack")
    assert "raylway train cnn" in page


def test_diverging_is_told_apart(place):
    code, result, err = raylway("train", "cnn", "optim.name=sgd", "optim.lr=1e30", *CPU_QUICK, "--json", cwd=place)
    assert (code, result["exit_code"]) == (14, 14)
    assert "the loss is nan at step 10; a lower optim.lr" in err
    assert failed_with(place)[:4] == ("FAILED", "train", "14", result["error"].removeprefix("error: "))
    assert not list(place.glob("runs/cnn/*/checkpoints/step-*"))


def test_plan_tells_all_without_making_anything(tmp_path):
    code, plan, _ = raylway("plan", "cnn", "optim.lr=0.01", "train.micro_batch=32", "--json", cwd=tmp_path)
    assert code == 0
    assert plan["parameters"] == 38_602
    assert plan["settings"]["optim.lr"] == {"value": 0.01, "origin": "command line"}
    assert plan["settings"]["model.filters"] == {"value": 32, "origin": "recipe"}
    assert plan["settings"]["optim.weight_decay"]["origin"] == "default"
    assert plan["batch"] == {"global": 128, "micro": 32, "accumulation": 4, "workers": 1}
    assert plan["steps"] == -(-20 * 1439 // 128)
    assert plan["data"]["rows"] == {"train": 1439, "validation": 180, "test": 178}
    assert plan["problems"] == []
    assert not list(tmp_path.glob("runs/*"))


def test_plan_lists_what_would_stop_the_run(tmp_path):
    code, plan, _ = raylway("plan", "cnn", "scale.workers=1", "scale.cpus=999", "track.uri=ftp://x", "--json", cwd=tmp_path)
    assert code == 2
    assert any("1 x 999 CPUs = 999, but the cluster has" in problem for problem in plan["problems"])
    assert any("not an MLflow address" in problem for problem in plan["problems"])


def test_prepare_makes_the_data_once(tmp_path):
    first, again = (raylway("prepare", "cnn", *CPU_QUICK, "--json", cwd=tmp_path)[1] for _ in range(2))
    assert (first["found"], again["found"]) == (False, True)
    assert first["folder"] == again["folder"]
    assert first["rows"] == {"train": 1439, "validation": 180, "test": 178}
