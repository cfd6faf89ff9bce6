"""`raylway submit` against a real cluster: follow, attach, stop, resume, and what is lost on the way."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.cli import ROOT, finish, raylway, start, until
from tests.forwarder import Forwarder
from tests.head import Head, head, new_token

QUICK = ("train", "cnn", "train.steps=20", "scale.workers=0", "scale.threads=1", "track.register=false", "--json")
LONG = (
    "train",
    "cnn",
    "train.batch=1024",
    "train.eval_every=1000",
    "scale.threads=1",
    "track.register=false",
    "--json",
)
PATIENCE_SECONDS = 240

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A cluster that asks for a token."""
    with head(cpus=2, token=new_token()) as started:
        yield started


def command(cluster: Head, *words: str, address: str | None = None, options: tuple[str, ...] = ()) -> list[str]:
    behind = ["--", *words] if words else []
    return ["submit", "--address", address or cluster.dashboard, "--working-dir", str(ROOT), "--json", *options, *behind]


def entering(cluster: Head) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": str(cluster.token)}


def submit(cluster: Head, *words: str, cwd: Path, options: tuple[str, ...] = (), **environment: str):
    """`raylway submit … -- words` from start to end: (exit code, its JSON, stderr)."""
    return raylway(*command(cluster, *words, options=options), cwd=cwd, **(entering(cluster) | environment))


def jobs_of(cluster: Head) -> list[dict]:
    """All that the cluster tells of its jobs."""
    asked = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"})
    return [job for job in json.load(urllib.request.urlopen(asked, timeout=30)) if job["submission_id"]]


def ids_of(cluster: Head, name: str) -> list[str]:
    return sorted(job["submission_id"] for job in jobs_of(cluster) if re.fullmatch(rf"{name}(-\d+)?", job["submission_id"]))


def written(storage: Path, name: str) -> bool:
    journal = storage / "cnn" / name / "journal.jsonl"
    return journal.exists() and journal.stat().st_size > 0


def checkpoints(storage: Path, name: str) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in (storage / "cnn" / name).glob("checkpoints/step-*/MANIFEST.json"))


def drivers(name: str) -> list[psutil.Process]:
    """The processes that jobs of that run consist of, and not who submitted them."""
    with contextlib.suppress(psutil.Error):
        return [
            each
            for each in psutil.process_iter(["cmdline"])
            if (each.info["cmdline"] or [])[1:4] == ["-m", "pipelines", "train"] and f"name={name}" in each.info["cmdline"]
        ]
    return []


def test_a_command_is_run_and_its_exit_code_and_result_come_back_and_the_same_again_shows_them(cluster, tmp_path):
    words = (*QUICK, f"storage={tmp_path}", "name=once")
    code, told, err = submit(cluster, *words, cwd=tmp_path)
    assert code == 0, err
    assert (told["submission_id"], told["status"], told["exit_code"], told["detached"]) == ("once", "SUCCEEDED", 0, False)
    assert told["result"] == json.loads((tmp_path / "cnn" / "once" / "result.json").read_text())
    assert "cnn on digits, 20 steps" in err
    assert "once: finished" in err

    code, again, err = submit(cluster, *words, cwd=tmp_path)
    assert code == 0, err
    assert again["submission_id"] == "once"
    assert again["result"] == told["result"]
    assert "once: finished at" in err
    assert ids_of(cluster, "once") == ["once"]

    code, third, err = submit(cluster, *words, cwd=tmp_path, options=("--again",))
    assert code == 0, err
    assert third["submission_id"] == "once-2"
    assert third["result"]["run_id"] == told["result"]["run_id"]

    code, other, err = submit(cluster, *words, "optim.lr=0.5", cwd=tmp_path)
    assert (code, other["exit_code"]) == (12, 12)
    assert "once: the name is taken by a job with other settings, once-2 (finished)" in err
    assert [line.split("pipelines")[1].split()[-1] for line in err.splitlines() if "python -m pipelines" in line] == [
        "name=once",
        "optim.lr=0.5",
    ]
    assert ids_of(cluster, "once") == ["once", "once-2"]


def test_no_token_is_written_where_others_look(cluster, tmp_path):
    password = new_token()
    code, _, err = submit(cluster, *QUICK, f"storage={tmp_path}", "name=secret", cwd=tmp_path, MLFLOW_TRACKING_PASSWORD=password)
    assert code == 0, err
    assert "MLFLOW_TRACKING_PASSWORD stays here" in err
    told = json.dumps(jobs_of(cluster)) + err
    places = [path for folder in (tmp_path, cluster.folder) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for secret in (str(cluster.token), password):
        assert secret not in told
        assert [path for path in places if secret.encode() in path.read_bytes()] == []
    assert len(places) > 20


def test_two_at_once_are_one_job_and_both_follow_it(cluster, tmp_path):
    words = (*QUICK, f"storage={tmp_path}", "name=both")
    running = [start(command(cluster, *words), cwd=tmp_path, **entering(cluster)) for _ in range(2)]
    ended = [finish(each) for each in running]
    assert [(code, told["submission_id"]) for code, told, _ in ended] == [(0, "both")] * 2, ended
    assert ended[0][1]["result"] == ended[1][1]["result"]
    assert ids_of(cluster, "both") == ["both"]


def test_ctrl_c_leaves_the_job_and_stop_leaves_a_checkpoint_and_the_same_goes_on(cluster, tmp_path):
    words = (*LONG, f"storage={tmp_path}", "name=stopped", "train.steps=2000", "train.checkpoint_every=100000")
    first = start(command(cluster, *words), cwd=tmp_path, **entering(cluster))
    until(lambda: written(tmp_path, "stopped"), first)
    first.send_signal(signal.SIGINT)
    code, told, err = finish(first)
    assert (code, told["detached"], told["status"]) == (130, True, "RUNNING"), err
    assert "stopped: no longer followed; it goes on" in err
    assert "--stop stopped" in err
    assert drivers("stopped")

    code, told, err = submit(cluster, cwd=tmp_path, options=("--status", "stopped"))
    assert (code, told["status"]) == (0, "RUNNING"), err

    attached = start(command(cluster, *words, options=("--no-wait",)), cwd=tmp_path, **entering(cluster))
    code, told, err = finish(attached)
    assert (code, told["submission_id"], told["status"]) == (0, "stopped", "RUNNING"), err

    code, told, err = submit(cluster, cwd=tmp_path, options=("--stop", "stopped"))
    assert (code, told["status"]) == (0, "STOPPED"), err
    [step] = checkpoints(tmp_path, "stopped")
    assert 0 < step < 2000

    code, told, err = submit(cluster, *words, cwd=tmp_path)
    assert code == 0, err
    assert told["submission_id"] == "stopped-2"
    assert told["result"]["resumed_from_step"] == step
    assert told["result"]["steps"] == 2000


def test_a_driver_that_is_killed_is_told_and_the_same_goes_on(cluster, tmp_path):
    words = (*LONG, f"storage={tmp_path}", "name=killed", "train.steps=600", "train.checkpoint_every=100", "scale.workers=0")
    running = start(command(cluster, *words), cwd=tmp_path, **entering(cluster))
    until(lambda: checkpoints(tmp_path, "killed"), running)
    [driver] = drivers("killed")
    driver.kill()
    code, told, err = finish(running)
    assert (code, told["status"]) == (12, "FAILED"), err
    assert "killed: its process was killed by signal 9" in err
    assert "go on with it: raylway submit" in err

    code, told, err = submit(cluster, *words, cwd=tmp_path)
    assert code == 0, err
    assert told["submission_id"] == "killed-2"
    assert told["result"]["resumed_from_step"] >= 100


def test_a_job_that_fails_gives_its_exit_code_and_what_a_shell_would_do_is_not_done(cluster, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    nasty = "/nowhere/$(touch a)`touch b`; touch c && touch d\ntouch e 'x' \"y\" | tee f > g.csv".replace("touch ", f"touch {made}/")
    code, told, err = submit(cluster, "prepare", "cnn", f"data.source={nasty}", f"storage={tmp_path}/s", "--json", cwd=tmp_path)
    assert (code, told["status"], told["exit_code"]) == (13, "FAILED", 13), err
    assert "there is no such file" in err
    assert f"$(touch {made}/a)" in told["result"]["error"]
    assert "failed with exit code 13" in err
    assert list(made.iterdir()) == []


def test_more_workers_than_the_nodes_can_ever_hold_are_refused_by_the_job_with_the_arithmetic(cluster, tmp_path):
    words = ("train", "cnn", "train.steps=20", "scale.workers=64", "train.batch=128", f"storage={tmp_path}", "name=many", "--json")
    code, told, err = submit(cluster, *words, cwd=tmp_path)
    assert (code, told["status"], told["exit_code"]) == (12, "FAILED", 12), err
    assert "scale.workers=64 x 1 CPU = 64, but the cluster has 2 CPUs" in err


def test_what_makes_no_run_is_done_each_time(cluster, tmp_path):
    words = ("prepare", "cnn", f"storage={tmp_path}", "scale.workers=0", "--json")
    first, second = (submit(cluster, *words, cwd=tmp_path) for _ in range(2))
    assert (first[0], second[0]) == (0, 0), second[2]
    assert second[1]["submission_id"] == first[1]["submission_id"] + "-2"
    assert (first[1]["result"]["found"], second[1]["result"]["found"]) == (False, True)


def test_jobs_are_listed_and_one_that_is_not_there_is_said(cluster, tmp_path):
    code, told, err = submit(cluster, *QUICK, f"storage={tmp_path}", "name=listed", cwd=tmp_path, options=("--no-wait",))
    assert (code, told["submission_id"], told["result"]) == (0, "listed", None), err
    code, told, err = submit(cluster, cwd=tmp_path, options=("--list",))
    assert code == 0, err
    assert "listed" in [job["submission_id"] for job in told["jobs"]]
    assert "python -m pipelines train cnn" in err
    code, told, err = submit(cluster, cwd=tmp_path, options=("--stop", "listet"))
    assert (code, told["exit_code"]) == (12, 12)
    assert f"listet: no such job at {cluster.dashboard}; did you mean listed?" in err


def test_who_has_no_token_or_another_submits_nothing(cluster, tmp_path):
    before, words = jobs_of(cluster), (*QUICK, f"storage={tmp_path}", "name=refused")
    code, _, err = submit(cluster, *words, cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert code == 12
    assert "the cluster asks for a token, and none was sent; set RAY_AUTH_MODE=token" in err
    code, _, err = submit(cluster, *words, cwd=tmp_path, RAY_AUTH_TOKEN=(wrong := new_token()))
    assert code == 12
    assert "the cluster does not accept the token of RAY_AUTH_TOKEN" in err
    assert wrong not in err
    assert [job["submission_id"] for job in jobs_of(cluster)] == [job["submission_id"] for job in before]


def test_a_stray_file_is_refused_by_name_and_nothing_goes_up(cluster, tmp_path):
    for room in ("pipelines", "workloads", "cluster"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "stray.bin").open("wb") as file:
        file.truncate(200 << 20)
    words = ["submit", "--address", cluster.dashboard, "--json", "--", *QUICK, f"storage={tmp_path}/s", "name=stray"]
    code, _, err = raylway(*words, cwd=tmp_path, **entering(cluster))
    assert code == 12
    assert "error: stray.bin (200.0 MiB): a file that goes up may have 100.0 MiB at most" in err
    assert ids_of(cluster, "stray") == []


def test_a_connection_that_is_cut_is_taken_up_and_no_line_is_lost_or_told_twice(cluster, tmp_path):
    words = (*LONG, f"storage={tmp_path}", "name=cut", "train.steps=600", "scale.workers=0")
    wire = Forwarder(int(urlsplit(cluster.dashboard).port or 0))
    try:
        running = start(command(cluster, *words, address=f"http://127.0.0.1:{wire.port}"), cwd=tmp_path, **entering(cluster))
        until(lambda: written(tmp_path, "cut"), running)
        assert wire.cut() >= 1
        code, told, err = finish(running)
    finally:
        wire.close()
    assert code == 0, err
    assert told["result"]["steps"] == 600
    kept = next(cluster.folder.glob("session_2*/logs/job-driver-cut.log")).read_text()
    assert kept in err


def test_a_lost_head_is_told_and_on_another_the_same_goes_on(tmp_path):
    words = (*LONG, f"storage={tmp_path}", "name=lost", "train.steps=600", "train.checkpoint_every=100", "scale.workers=0")
    with head(cpus=1, token=new_token()) as first:
        running = start(command(first, *words), cwd=tmp_path, **entering(first))
        until(lambda: checkpoints(tmp_path, "lost"), running)
    until(lambda: not drivers("lost"))
    with head(cpus=1, token=new_token()) as second:
        code, told, err = submit(second, *words, cwd=tmp_path)
        assert code == 0, err
        assert told["submission_id"] == "lost"
        assert told["result"]["resumed_from_step"] >= 100
    code, told, err = finish(running)
    assert code == 12
    assert "no answer for 60 s while lost was followed" in told["error"]
    assert "follow it again, or go on with it: raylway submit" in err
