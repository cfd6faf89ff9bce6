"""A run that is stopped at any moment ends, by the same command, as one that never was: same bits, one MLflow run, no double point."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import time

import psutil
import pytest

from pipelines.data import preparation
from tests import runs
from tests.cli import CPU_QUICK, finish, raylway, start, until

TRAIN = ("train", "cnn", "train.steps=2500", "train.batch=8", "train.checkpoint_every=50", "--json")


@pytest.fixture
def place(place, storage):
    """It has the prepared digits as well."""
    run = runs.load(storage)
    plan = preparation.plan(run)
    preparation.prepare(run, plan, preparation.in_process)
    shutil.copytree(plan.folder, place / "runs" / "datasets" / plan.folder.name)
    return place


def started(arguments, place):
    """A training that has saved its first checkpoint."""
    process = start(arguments, cwd=place)
    until(lambda: list(place.glob("runs/cnn/*/checkpoints/step-*/MANIFEST.json")), process)
    return process


def tracked_runs(place):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    return client, client.search_runs([client.get_experiment_by_name("cnn").experiment_id])


def statuses(place):
    return sorted(run.info.status for run in tracked_runs(place)[1])


def offset_sent(place):
    """How much of the journal MLflow has."""
    return max((json.loads(path.read_text())["offset"] for path in place.glob("runs/cnn/*/mlflow.json")), default=0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, storage):
    """The weights' hash of the same run, left alone; it saves its state once."""
    settings = [each for each in TRAIN if "=" in each]
    alone = runs.alone(runs.job(storage, tmp_path_factory.mktemp("undisturbed"), *settings, "train.checkpoint_every=2500"))
    return alone.weights_sha256


def assert_went_on(place, undisturbed, *settings):
    code, result, err = raylway(*TRAIN, *settings, cwd=place)
    assert code == 0, err
    assert 0 < result["resumed_from_step"] < 2500
    assert result["weights_sha256"] == undisturbed
    client, kept = tracked_runs(place)
    assert [run.info.status for run in kept if run.info.run_id == result["run_id"]] == ["FINISHED"]
    assert [run.info.run_name for run in kept].count(result["run_name"]) == 1
    assert "cause" not in client.get_run(result["run_id"]).data.tags, "why it stopped before is no tag of a run that finished"
    steps = [point.step for point in client.get_metric_history(result["run_id"], "loss")]
    assert steps == list(range(10, 2501, 10))
    return result


@pytest.mark.long
def test_kill_9_of_the_whole_command(place, undisturbed):
    process = started([*TRAIN, *CPU_QUICK], place)
    while not offset_sent(place):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert statuses(place) == ["RUNNING"]
    [killed] = tracked_runs(place)[1]
    assert "raylway train cnn train.steps=2500" in killed.data.tags["mlflow.note.content"]
    assert raylway("train", "cnn", "train.steps=5", "name=next", "track.register=false", *CPU_QUICK, cwd=place)[0] == 0
    assert statuses(place) == ["FINISHED", "KILLED"], "the next run closes what a killed one left open"
    assert "its process was killed outright" in {run.data.tags.get("cause") for run in tracked_runs(place)[1]}
    shutil.rmtree(place / "runs" / "cnn" / "next")
    assert_went_on(place, undisturbed, *CPU_QUICK)


@pytest.mark.parametrize("named", [(), pytest.param(("name=chosen",), marks=pytest.mark.slow)])  # () shows it
def test_what_a_stopped_run_with_again_prints_resumes_that_run_and_not_the_one_before(named, place):
    first = started([*TRAIN, *CPU_QUICK, *named], place)
    first.send_signal(signal.SIGTERM)
    finish(first)
    [before] = place.glob("runs/cnn/*")
    second = start([*TRAIN, "--again", *CPU_QUICK, *named], cwd=place)
    folder = before.with_name(f"{before.name}-2")
    until(lambda: list(folder.glob("checkpoints/step-*")), second)
    second.send_signal(signal.SIGTERM)
    [line] = [line for line in finish(second)[2].splitlines() if line.startswith("resume with: raylway ")]
    words = shlex.split(line.removeprefix("resume with: raylway "))
    assert [word for word in words if word.startswith("name=")] == [f"name={folder.name}"]
    kept = {path.name for path in folder.glob("checkpoints/step-*")}
    third = start(words, cwd=place)
    until(lambda: {path.name for path in folder.glob("checkpoints/step-*")} - kept, third)
    third.send_signal(signal.SIGTERM)
    assert line in finish(third)[2]
    assert {each.name for each in place.glob("runs/cnn/*")} == {before.name, folder.name}


def test_a_stopped_run_says_how_to_resume_and_is_killed_in_mlflow(place):
    process = started([*TRAIN, *CPU_QUICK], place)
    process.send_signal(signal.SIGTERM)
    code, result, err = finish(process)
    assert (code, result["status"]) == (130, "interrupted")
    assert "resume with: raylway train cnn" in err
    [run] = tracked_runs(place)[1]
    assert run.info.status == "KILLED"
    tags = run.data.tags
    assert (tags["stage"], tags["cause"], tags["exit_code"]) == ("train", "interrupted", "130")
    assert "raylway train cnn train.steps=2500 train.batch=8" in tags["mlflow.note.content"]
    assert run.data.metrics["cost/cpu_hours"] == pytest.approx(run.data.metrics["cost/seconds"] / 3600), "one thread"


@pytest.mark.slow
def test_a_second_start_of_a_running_run_is_refused(place):
    process = started([*TRAIN, *CPU_QUICK], place)
    code, result, err = raylway(*TRAIN, *CPU_QUICK, cwd=place)
    process.kill()
    process.communicate()
    assert (code, result["exit_code"]) == (12, 12)
    assert f"has a driver already (process {process.pid})" in err


@pytest.mark.slow
def test_the_driver_of_ray_workers_is_killed(place, undisturbed):
    process = started([*TRAIN, "scale.threads=1"], place)
    process.kill()
    process.communicate(timeout=60)
    assert_went_on(place, undisturbed, "scale.threads=1")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_driver_of_ray_workers_is_stopped_and_the_step_at_which_it_was_asked_is_not_lost(place, undisturbed, stop):
    process = started([*TRAIN, "scale.threads=1"], place)
    process.send_signal(stop)
    code, result, err = finish(process)
    assert (code, result["status"]) == (130, "interrupted")
    [said] = re.findall(r"asked to stop: checkpoint at step ([\d,]+), it is the last", err)
    newest = max(path.name for path in place.glob("runs/cnn/*/checkpoints/step-*"))
    assert int(newest.removeprefix("step-")) == int(said.replace(",", ""))
    assert "resume with: raylway train cnn" in err
    assert statuses(place) == ["KILLED"]
    assert assert_went_on(place, undisturbed, "scale.threads=1")["resumed_from_step"] == int(said.replace(",", ""))


@pytest.mark.slow
def test_sigterm_leaves_workers_the_time_they_need(place):
    process = started([*TRAIN, "scale.threads=1"], place)
    workers = [each for each in psutil.Process(process.pid).children(recursive=True) if each.name().startswith("ray::RayTrain")]
    for each in workers:
        each.suspend()
    process.send_signal(signal.SIGTERM)
    time.sleep(5)  # Ray's own handler would have aborted the process after three
    for each in workers:
        each.resume()
    code, result, err = finish(process)
    assert (code, result["status"]) == (130, "interrupted")
    assert "asked to stop: checkpoint at step" in err
    assert statuses(place) == ["KILLED"]


@pytest.mark.slow
def test_who_is_asked_twice_stops_at_once(place):
    process = started([*TRAIN, "scale.threads=1"], place)
    workers = [each for each in psutil.Process(process.pid).children(recursive=True) if each.name().startswith("ray::RayTrain")]
    for each in workers:  # which can see no request any more
        each.suspend()
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "waiting for a checkpoint" in line:
            break
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert "no checkpoint within" not in err, "it did not wait to the end"
