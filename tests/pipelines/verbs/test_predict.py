"""Every row of any source gets its answer once, in order, whatever is killed on the way; what cannot be answered is said in a sentence."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import time
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.embedded import EMBEDDED, breast_cancer, digits, python_lines, seasons
from pipelines.errors import RecipeError, StorageError, code_of
from pipelines.screen import Screen
from pipelines.tracking.client import connect
from pipelines.verbs import predict as predicting
from tests import forked
from tests.cli import ROOT, raylway
from tests.trained import storage_with, trained
from workloads.base import DataError

RECIPES = ("cnn", "mlp_binary", "lstm", "lstm_text", "gpt")


@pytest.fixture(scope="module")
def storage(tmp_path_factory, empty_database):
    folder = storage_with(tmp_path_factory.mktemp("predict"), empty_database)
    for recipe in RECIPES:
        trained(folder, recipe=recipe)
    return folder


@pytest.fixture
def ask(storage):
    def ask(model, source, target, *overrides, **how):
        settings = [f"storage={storage}", "scale.threads=1", *overrides]
        return predicting.predict(model, str(source), str(target), settings, screen=Screen(as_json=True), **how)

    return ask


@pytest.fixture
def pyfunc(storage):
    """What MLflow's own loading of the registered model says."""

    def answer(recipe, given):
        import mlflow

        connect(f"sqlite:///{storage}/mlflow.db")
        return mlflow.pyfunc.load_model(f"models:/{recipe}@champion").predict(given)

    return answer


def small_pieces(monkeypatch):
    monkeypatch.setattr(predicting, "_PIECE_SECONDS", 1e-9)


@pytest.mark.parametrize(
    ("recipe", "source", "given"),
    [
        ("cnn", "digits", lambda: digits()["image"]),
        ("mlp_binary", "breast_cancer", lambda: pd.DataFrame({n: c for n, c in breast_cancer().items() if n != "label"})),
        ("lstm_text", "python_lines", lambda: pd.DataFrame({"text": python_lines()["text"]})),
    ],
)
def test_a_row_s_answer_is_that_of_the_served_model(recipe, source, given, ask, pyfunc, tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    result = ask(f"models:/{recipe}@champion", source, tmp_path / "out.parquet")
    told, wanted = pd.read_parquet(tmp_path / "out.parquet"), pyfunc(recipe, given())
    assert result["rows_in"] == result["rows_out"] == len(told) == len(wanted) == EMBEDDED[source].rows()
    assert result["skipped"] == 0
    assert told["row"].tolist() == list(range(len(told)))
    assert told["predicted_label"].tolist() == wanted["label"].tolist()
    np.testing.assert_allclose(told["probability"], wanted["probability"], atol=1e-5)
    np.testing.assert_allclose(np.stack(told["probabilities"]), np.stack(wanted["probabilities"]), atol=1e-5)
    assert told["label"].tolist() == list(EMBEDDED[source].make()["label"]), "the input's own column is kept"


def test_each_row_of_a_series_has_the_forecast_of_the_window_that_ends_with_it(ask, pyfunc, tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    series = {name: column[:3000] for name, column in seasons().items()}
    pq.write_table(pa.table(series), tmp_path / "series.parquet", row_group_size=700)
    result = ask("lstm", tmp_path / "series.parquet", tmp_path / "out")
    told = pd.read_parquet(tmp_path / "out")
    assert result["parts"] > 3
    assert (len(told), told["row"].tolist()) == (len(series["demand"]), list(range(len(told))))
    assert told["forecast"][:23].isna().all()
    windows = np.lib.stride_tricks.sliding_window_view(np.stack([series["demand"], series["temperature"]], 1), 24, axis=0)
    wanted = pyfunc("lstm", np.ascontiguousarray(windows.transpose(0, 2, 1)))
    np.testing.assert_allclose(np.stack(told["forecast"][23:]), np.stack(wanted["forecast"]), rtol=1e-4)


def test_a_prompt_s_answer_stands_beside_it(ask, pyfunc, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "def f(", "id": 7}\n{"prompt": "", "id": 8}\n')
    ask("gpt", tmp_path / "prompts.jsonl", tmp_path / "out.jsonl")
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["id"], row["prompt"]) for row in told] == [(0, 7, "def f("), (1, 8, "")]
    assert [row["text"] for row in told] == pyfunc("gpt", pd.DataFrame({"prompt": ["def f(", ""]}))["text"].tolist()
    (tmp_path / "lines.txt").write_text("import os\n\n")
    ask("gpt", tmp_path / "lines.txt", tmp_path / "lines.jsonl")
    assert set(json.loads((tmp_path / "lines.jsonl").read_text().splitlines()[0])) == {"row", "text", "predicted_text"}


def table(path, rows=1000, **columns):
    """Rows of the breast cancer table over and over, each with an id of its own."""
    held = {name: np.resize(column, rows) for name, column in breast_cancer().items() if name != "label"}
    pq.write_table(pa.table(held | {"id": [f"case {row}" for row in range(rows)]} | columns), path, row_group_size=300)
    return path


def test_all_formats_hold_the_same_rows_and_one_file_those_of_all_parts(ask, tmp_path, monkeypatch):
    small_pieces(monkeypatch)
    source = table(tmp_path / "in.parquet", row=np.arange(1000) * 2, text=['"a", b\nc'] * 999 + [None])
    results = {name: ask("mlp_binary", source, tmp_path / name) for name in ("a.parquet", "a.csv", "a.jsonl", "parts")}
    results["lines/"] = ask("mlp_binary", source, f"{tmp_path}/lines/", form="jsonl")
    lines = sorted((tmp_path / "lines").glob("part-*.jsonl"))
    assert len(lines) == results["lines/"]["parts"] > 5
    read = [
        pd.read_parquet(tmp_path / "a.parquet"),
        pd.read_csv(tmp_path / "a.csv").assign(probabilities=lambda told: told["probabilities"].map(json.loads)),
        pd.read_json(tmp_path / "a.jsonl", lines=True),
        pd.read_parquet(tmp_path / "parts"),
        pd.concat([pd.read_json(path, lines=True) for path in lines], ignore_index=True),
    ]
    for told in read:
        assert list(told.columns) == results["a.csv"]["columns"]
        assert told["input_row"].tolist() == list(range(1000))
        assert told["row"].tolist() == list(range(0, 2000, 2))
        assert told["id"].tolist() == [f"case {row}" for row in range(1000)]
        assert told["text"].isna().sum() == 1
        assert told["text"][0] == '"a", b\nc'
        assert told["label"].tolist() == read[0]["label"].tolist()
        np.testing.assert_allclose(np.stack(told["probabilities"]), np.stack(read[0]["probabilities"]), rtol=1e-6)


KILLED = """
from pipelines.verbs import predict
predict._PIECE_SECONDS = 1e-9
from pipelines.__main__ import main
main()
"""


def test_killed_in_the_middle_the_same_command_ends_with_every_row_once(storage, tmp_path):
    source = table(tmp_path / "in.parquet", 16_000)
    arguments = (
        "predict",
        "mlp_binary",
        str(source),
        str(tmp_path / "out"),
        f"storage={storage}",
        "scale.workers=0",
        "scale.threads=1",
        "--json",
    )
    (tmp_path / "in_small_pieces.py").write_text(KILLED)
    first = forked.Command("in_small_pieces", arguments, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while len(cards := list((tmp_path / "out").glob("_part-*.json"))) < 3:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*") if (tmp_path / f"out/_{path.stem}.json").exists()}
    assert not (tmp_path / "out" / "_done.json").exists()
    code, result, err = raylway(*arguments, cwd=tmp_path)
    assert code == 0, err
    assert (result["rows_in"], result["rows_out"], result["skipped"]) == (16_000, 16_000, 0)
    assert len(cards) <= len(done) <= result["parts_done_before"] < result["parts"]
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done was done again"
    told = pd.read_parquet(tmp_path / "out")
    assert told["row"].tolist() == list(range(16_000))
    assert told["id"].tolist() == [f"case {row}" for row in range(16_000)]
    assert not list((tmp_path / "out").glob(".work.*"))


def test_the_same_command_again_says_that_it_is_finished_and_another_job_is_refused(ask, tmp_path, storage):
    source, target = table(tmp_path / "in.parquet", 100), tmp_path / "out.csv"
    first = ask("mlp_binary", source, target)
    before = target.stat().st_mtime_ns
    assert ask("mlp_binary", source, target)["rows_out"] == first["rows_out"] == 100
    assert target.stat().st_mtime_ns == before
    with pytest.raises(StorageError, match=r"out\.csv: holds predictions of other data; name another place, or give --again"):
        ask("mlp_binary", table(tmp_path / "more.parquet", 101), target)
    trained(storage, "name=other", "train.seed=1", recipe="mlp_binary")
    with pytest.raises(StorageError, match="holds predictions of another model"):
        ask("other", source, target)
    assert ask("mlp_binary", tmp_path / "more.parquet", target, again=True)["rows_out"] == 101
    assert len(pd.read_csv(target)) == 101


def test_a_damaged_card_is_refused_and_again_begins_anew(ask, tmp_path):
    source = table(tmp_path / "in.parquet", 10)
    ask("mlp_binary", source, tmp_path / "out")
    (tmp_path / "out" / "_job.json").write_text('{"model": "of another release"}')
    with pytest.raises(StorageError, match=r"_job\.json: damaged, or written by an earlier release; --again begins anew"):
        ask("mlp_binary", source, tmp_path / "out")
    assert ask("mlp_binary", source, tmp_path / "out", again=True)["rows_out"] == 10


def test_what_others_wrote_is_left_alone(ask, tmp_path):
    source = table(tmp_path / "in.parquet", 10)
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(StorageError, match=r"there\.csv: exists already and was not written by this command"):
        ask("mlp_binary", source, tmp_path / "there.csv", again=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    with pytest.raises(StorageError, match="folder: is not empty, and has no predictions of this command"):
        ask("mlp_binary", source, tmp_path / "folder", again=True)
    with pytest.raises(RecipeError, match="is the input, or lies inside it"):
        ask("mlp_binary", source, source, again=True)
    with pytest.raises(RecipeError, match="is the input, or lies inside it"):
        ask("mlp_binary", tmp_path, tmp_path / "answers")
    assert (tmp_path / "there.csv").read_text() == (tmp_path / "folder" / "notes").read_text() == "mine"


def test_bad_rows_stop_or_are_left_out_and_counted(ask, tmp_path):
    columns = {name: column[:300].astype(object) for name, column in breast_cancer().items() if name != "label"}
    columns["mean_area"][[7, 200]] = "unknown"
    pd.DataFrame(columns).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=r"bad\.csv, row 7: column mean_area: 'unknown' is not a number"):
        ask("mlp_binary", tmp_path / "bad.csv", tmp_path / "out.csv")
    result = ask("mlp_binary", tmp_path / "bad.csv", tmp_path / "left.csv", "data.on_bad_row=skip")
    assert (result["rows_in"], result["rows_out"], result["skipped"]) == (300, 298, 2)
    assert [one.partition(": ")[0] for one in result["skipped_examples"]] == ["bad.csv, row 7", "bad.csv, row 200"]
    assert pd.read_csv(tmp_path / "left.csv")["row"].tolist() == [row for row in range(300) if row not in (7, 200)]
    with pytest.raises(DataError, match=r"2 of 300 rows cannot be used, more than data.max_bad_fraction=0\.001 allows"):
        ask("mlp_binary", tmp_path / "bad.csv", tmp_path / "few.csv", "data.on_bad_row=skip", "data.max_bad_fraction=0.001")
    assert not (tmp_path / "few.csv").exists()


def test_pictures_in_a_folder_need_no_labels_and_their_paths_are_kept(ask, tmp_path):
    images = digits()["image"][:5]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    ask("cnn", tmp_path, tmp_path.with_name("answers.csv"))
    ask("cnn", "digits", tmp_path.with_name("digits.csv"))
    told = pd.read_csv(tmp_path.with_name("answers.csv"))
    assert list(told.columns) == ["row", "path", "label", "probability", "probabilities"]
    assert told["path"].tolist() == [f"{number}.png" for number in range(5)]
    assert told["label"].tolist() == pd.read_csv(tmp_path.with_name("digits.csv"))["predicted_label"][:5].tolist()


def test_a_table_s_paths_are_opened_and_kept_as_they_are(ask, tmp_path):
    for number, image in enumerate(digits()["image"][:3]):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        (tmp_path / f"{number}.png").write_bytes(stream.getvalue())
    (tmp_path / "table.csv").write_text("picture,who\n0.png,a\n1.png,b\n2.png,c\n")
    ask("cnn", tmp_path / "table.csv", tmp_path / "out.csv", "data.columns.image=picture")
    told = pd.read_csv(tmp_path / "out.csv")
    assert told["picture"].tolist() == ["0.png", "1.png", "2.png"]
    assert told["who"].tolist() == ["a", "b", "c"]
    assert list(told.columns) == ["row", "picture", "who", "label", "probability", "probabilities"]


def test_answers_can_lie_in_an_object_store(ask, tmp_path):
    import fsspec

    source, place = table(tmp_path / "in.parquet", 50), f"memory://answers-{uuid.uuid4().hex}"
    ask("mlp_binary", source, f"{place}/out.csv")
    ask("mlp_binary", source, f"{place}/parts/")
    with fsspec.open(f"{place}/out.csv") as file:
        assert len(pd.read_csv(file)) == 50
    assert ask("mlp_binary", source, f"{place}/parts/")["rows_out"] == 50, "finished already"
    with fsspec.open(f"{place}/parts/part-00000.parquet") as file:
        assert len(pd.read_parquet(file)) == 50


def problem(ask, model, source, target, *overrides, kind=DataError):
    with pytest.raises(kind) as raised:
        ask(model, source, target, *overrides)
    return str(raised.value)


def test_what_cannot_be_answered_is_said(ask, tmp_path):
    out = tmp_path / "out.csv"
    told = problem(ask, "lstm_text", "digits", out)
    assert "digits: does not fit lstm_text, a model of text classification: there is no column 'text'" in told
    (tmp_path / "review.csv").write_text("texts,stars\nfine,5\n")
    told = problem(ask, "lstm_text", tmp_path / "review.csv", out)
    assert "there is no column 'text'; did you mean data.columns.text=texts?; columns: texts, stars" in told
    (tmp_path / "empty.csv").write_text("text\n")
    assert "empty.csv: has no rows" in problem(ask, "lstm_text", tmp_path / "empty.csv", out)
    (tmp_path / "short.csv").write_text("hour,demand,temperature\n" + "1,2,3\n" * 23)
    assert "short.csv: 23 rows are fewer than a window of 24" in problem(ask, "lstm", tmp_path / "short.csv", out)
    assert "there is no such file" in problem(ask, "cnn", tmp_path / "nothing.csv", out)
    told = problem(ask, "cnn", "digits", tmp_path / "out.xlsx", kind=RecipeError)
    assert "out.xlsx: files end in .parquet, .csv, .jsonl, .ndjson; a folder of parts ends in no dot and letters, or in /" in told
    assert "data.source: what is read is INPUT" in problem(ask, "cnn", "digits", out, "data.source=x", kind=RecipeError)
    assert "so none can be left out" in problem(ask, "lstm", "seasons", out, "data.on_bad_row=skip", kind=RecipeError)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("models:/nothing@champion", "digits"), 2, "there is no registered model 'nothing'; there are: cnn, gpt, lstm"),
        (("models:/cnn@best", "digits"), 2, "models:/cnn has no alias @best; it has: @candidate (1); @champion (1)"),
        (("cnn", "breast_cancer"), 13, "there is no column 'image'"),
        (("cnn", "digits", "track.uri=http://127.0.0.1:9"), 12, "track.uri=http://127.0.0.1:9: no MLflow server answers"),
    ],
)
def test_each_mistake_has_its_exit_code(arguments, code, sentence, ask, tmp_path):
    model, source, *overrides = arguments
    with pytest.raises(Exception, match=re.escape(sentence)) as raised:
        ask(model, source, tmp_path / "out.csv", *overrides)
    assert code_of(raised.value) == code
    assert not (tmp_path / "out.csv").exists()


def test_the_command_says_one_sentence_and_ends_with_the_code_for_it(storage, tmp_path):
    done, result, err = raylway("predict", "cnn", "breast_cancer", "out.csv", f"storage={storage}", "--json", cwd=tmp_path)
    assert (done, result["status"]) == (13, "failed")
    assert "there is no column 'image'" in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "out.csv").exists()


def test_the_same_job_in_two_processes_at_once_is_refused(ask, tmp_path):
    from pipelines.evaluation.output import output_of

    source = table(tmp_path / "in.parquet", 10)
    with output_of(str(tmp_path / "out"), None, tmp_path / "cache").locked():
        assert "has a predict already" in problem(ask, "mlp_binary", source, tmp_path / "out", kind=StorageError)
    shutil.rmtree(tmp_path / "out")
    assert ask("mlp_binary", source, tmp_path / "out")["rows_out"] == 10
