"""What MLflow was not told is listed from a run's folder, and sent: once, with the right end, and nothing is trained for it."""

from __future__ import annotations

import json
import shutil

import pytest

from pipelines.errors import RecipeError
from pipelines.run_record import RunFolder, begin, sent
from pipelines.run_states import ABOUT, CONFIG, ENDING, SENT, About, Ending, Sent
from pipelines.screen import Screen
from pipelines.tracking.client import connect
from pipelines.tracking.journal import Journal
from pipelines.tracking.shipper import OUTRIGHT
from pipelines.verbs.track import track
from tests.cli import raylway


@pytest.fixture
def storage(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def a_run(storage, name, *, points=5, ending=None, below=None):
    """The folder of a run as its process left it, of which MLflow was never told."""
    folder = RunFolder((below.path if below else storage / "cnn") / name)
    folder.path.mkdir(parents=True)
    folder.write(CONFIG, "workload: cnn\n")
    begin(folder, About(name, "cnn", {"optim.lr": 0.1}, {"stage": "train"}, "digits", "f" * 16, "", 1.7e9, ("raylway", "train", "cnn")))
    journal = Journal(folder.journal)
    for step in range(1, points + 1):
        journal.write(step, {"loss": 1 / step})
    journal.close()
    if ending:
        folder.write(ENDING, Ending(ending, {"cause": "a cause"}, {"cost/seconds": 2.0}, time=1_700_000_009_000))
    return folder


def seen(storage, *, sync=False, called=None):
    return track(called, [f"storage={storage}"], sync=sync, screen=Screen())


def runs_of(storage):
    client = connect(f"sqlite:///{storage}/mlflow.db")
    return {run.info.run_name: run for run in client.search_runs([each.experiment_id for each in client.search_experiments()])}


def steps_of(storage, run):
    return sorted(point.step for point in connect(f"sqlite:///{storage}/mlflow.db").get_metric_history(run.info.run_id, "loss"))


def test_runs_are_listed_with_what_mlflow_has_not(storage):
    a_run(storage, "one", ending="FAILED")
    a_run(storage, "two", points=3)
    told = seen(storage)
    assert [(run["run"], run["status"], run["values"], run["unsent"]) for run in told["runs"]] == [
        ("cnn/one", "failed", 5, 5),
        ("cnn/two", "stopped", 3, 3),
    ]
    assert (told["unsent"], told["runs"][0]["resume"]) == (2, "raylway train cnn")
    assert not runs_of(storage), "to list is not to send"


@pytest.mark.parametrize("ending", ["FAILED", "KILLED"])
def test_a_run_that_ended_while_mlflow_was_away_is_told_with_its_end_and_once(storage, ending):
    a_run(storage, "one", ending=ending)
    for _ in range(2):
        assert seen(storage, sync=True)["unsent"] == 0
    run = runs_of(storage)["one"]
    assert (run.info.status, run.data.tags["cause"], run.info.end_time) == (ending, "a cause", 1_700_000_009_000)
    assert (steps_of(storage, run), run.data.metrics["cost/seconds"]) == ([1, 2, 3, 4, 5], 2.0)


def test_a_run_that_was_killed_outright_is_closed_as_killed(storage):
    a_run(storage, "one")
    assert seen(storage, sync=True)["unsent"] == 0
    run = runs_of(storage)["one"]
    assert (run.info.status, run.data.tags["cause"]) == ("KILLED", OUTRIGHT)


def test_a_run_at_which_a_process_is_is_left_alone(storage):
    folder = a_run(storage, "one")
    with folder.locked("driver", wait_seconds=0):
        told = seen(storage, sync=True)
    assert [run["status"] for run in told["runs"]] == ["running"]
    assert not runs_of(storage)


def test_only_the_run_that_is_named_is_sent(storage):
    for name in ("one", "two"):
        a_run(storage, name, ending="FAILED")
    assert seen(storage, sync=True, called="cnn/two")["unsent"] == 0
    assert list(runs_of(storage)) == ["two"]
    with pytest.raises(RecipeError, match=r"three: there is no such run in .*; there are: cnn/one, cnn/two"):
        seen(storage, called="three")


def test_trials_are_told_below_their_sweep_which_only_its_command_can_end(storage):
    sweep = a_run(storage, "a-sweep", points=1)
    (sweep.path / "ledger.jsonl").touch()
    a_run(storage, "0000", ending="FINISHED", below=sweep)
    told = seen(storage, sync=True)
    assert [(run["run"], run["sent"]) for run in told["runs"]] == [("cnn/a-sweep", False), ("cnn/a-sweep/0000", True)]
    assert "the command that began it goes on" in told["runs"][0]["error"]
    found = runs_of(storage)
    assert found["0000"].data.tags["mlflow.parentRunId"] == found["a-sweep"].info.run_id
    assert (found["0000"].info.status, found["a-sweep"].info.status) == ("FINISHED", "RUNNING")


def test_one_that_cannot_be_sent_does_not_keep_the_others_back(storage):
    elsewhere = a_run(storage, "elsewhere", ending="FAILED")
    elsewhere.write(SENT, Sent("k" * 32, "http://me:***@127.0.0.1:9"))
    a_run(storage, "here", ending="FAILED")
    told = seen(storage, sync=True)
    assert {run["run"]: run["sent"] for run in told["runs"]} == {"cnn/elsewhere": False, "cnn/here": True}
    assert "it was tracked at http://me:***@127.0.0.1:9; say so with track.uri=, password included" in told["runs"][0]["error"]


def test_no_secret_is_kept_for_later(storage):
    folder = a_run(storage, "one")
    about = About(
        "one",
        "cnn",
        {"data.source": "s3://me:hunter2@b/x"},
        {"note": "token=hunter2"},
        "s3://me:hunter2@b/x",
        "f",
        "",
        1.7e9,
        ("a=s3://me:hunter2@b",),
    )
    begin(folder, about)
    folder.write(ENDING, Ending("FAILED", {"cause": "https://me:hunter2@host: refused"}))
    folder.write(SENT, Sent("k"))
    assert not [path for path in folder.path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert json.loads(folder.path_of(ABOUT).read_text())["params"] == {"data.source": "s3://me:***@b/x"}


def test_track_is_a_command_whose_exit_code_says_whether_all_is_sent(storage):
    elsewhere = a_run(storage, "one", ending="FAILED")
    code, told, err = raylway("track", "--json", cwd=storage, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert (code, told["unsent"]) == (0, 0), "another storage"
    code, told, err = raylway("track", "--sync", f"--storage={storage}", "track.uri=http://127.0.0.1:9", "--json", cwd=storage)
    assert (code, told["unsent"]) == (12, 1), err
    assert "no MLflow server answers" in told["runs"][0]["error"]
    assert raylway("track", "one", "two", cwd=storage)[0] == 2
    assert not sent(elsewhere).closed
