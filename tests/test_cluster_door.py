"""Coming into a cluster of others: an address that is wrong, a token that is wrong, no room, a control plane that goes away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli import finish, raylway, start, until
from tests.head import RAY, Head, free_ports, head, new_token

QUICK = ("train", "cnn", "train.steps=20", "scale.threads=1", "track.register=false", "--json")


@pytest.fixture(scope="module")
def closed():
    """A cluster that asks for a token."""
    with head(cpus=2, token=new_token()) as started:
        yield started


def with_token(cluster: Head, token: str | None = None) -> dict[str, str]:
    return {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or str(cluster.token)}


def test_an_address_where_nobody_answers_is_said_at_once(tmp_path):
    [port] = free_ports(1)
    code, told, err = raylway(*QUICK, f"storage={tmp_path}", cwd=tmp_path, RAY_ADDRESS=f"127.0.0.1:{port}")
    assert code == told["exit_code"] == 12
    assert f"error: RAY_ADDRESS=127.0.0.1:{port}: no Ray control plane (GCS) answers there" in err


def test_the_address_of_jobs_is_not_that_of_the_control_plane(tmp_path):
    code, _, err = raylway(*QUICK, f"storage={tmp_path}", cwd=tmp_path, RAY_ADDRESS="http://127.0.0.1:8265")
    assert code == 12
    assert "host:6379" in err
    assert "raylway submit --address http://127.0.0.1:8265 -- …" in err


@pytest.mark.slow
def test_without_its_token_a_cluster_lets_nobody_in_and_says_what_to_set(closed, tmp_path):
    code, _, err = raylway(*QUICK, f"storage={tmp_path}", cwd=tmp_path, HOME=str(tmp_path), RAY_ADDRESS=closed.address)
    assert code == 12
    assert "the cluster asks for a token" in err
    assert "RAY_AUTH_TOKEN" in err


@pytest.mark.slow
def test_a_wrong_token_is_refused_and_not_printed(closed, tmp_path):
    wrong = new_token()
    code, _, err = raylway(*QUICK, f"storage={tmp_path}", cwd=tmp_path, **with_token(closed, wrong))
    assert code == 12
    assert "does not accept the token of RAY_AUTH_TOKEN" in err
    assert wrong not in err


@pytest.mark.slow
def test_with_its_token_it_trains_and_the_token_is_written_nowhere(closed, tmp_path):
    code, told, err = raylway(*QUICK, f"storage={tmp_path}", cwd=tmp_path, **with_token(closed))
    assert code == 0, err
    assert told["status"] == "finished"
    written = [path for path in tmp_path.rglob("*") if path.is_file() and str(closed.token).encode() in path.read_bytes()]
    assert written == []


@pytest.mark.slow
def test_a_job_is_submitted_and_trains(closed, tmp_path):
    """`ray job submit … -- python -m pipelines train …`, from this repository."""
    root = Path(__file__).parents[1]
    words = [*QUICK[:-1], f"storage={tmp_path}", "name=submitted", "scale.workers=2"]
    command = [RAY, "job", "submit", "--address", closed.dashboard, "--working-dir", str(root), "--", "python", "-m", "pipelines", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run(command, env=environment | closed.environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert json.loads((tmp_path / "cnn" / "submitted" / "result.json").read_text())["workers"] == 2


@pytest.mark.slow
def test_without_the_token_nobody_submits(closed):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{closed.dashboard}/api/jobs/", timeout=20)
    assert refused.value.code in (401, 403)


@pytest.mark.slow
def test_a_token_where_none_is_asked_for_is_refused_with_what_to_set(tmp_path):
    with head(cpus=1) as cluster:
        code, _, err = raylway(*QUICK, f"storage={tmp_path}", cwd=tmp_path, **with_token(cluster, token := new_token()))
    assert code == 12
    assert "this process has a token (RAY_AUTH_TOKEN), but the cluster runs without authentication" in err
    assert "RAY_AUTH_MODE=disabled" in err
    assert token not in err


HOLDER = """
import os, sys, time, ray
ray.init(address=sys.argv[1], logging_level="ERROR")
@ray.remote(num_cpus=2)
class Holder:
    def ready(self): return True
holder = Holder.remote()
ray.get(holder.ready.remote())
print("holding", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def held(cluster: Head) -> Iterator[Callable[[], object]]:
    """All CPUs of the cluster are held by another's job, until what is given is called."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))} | cluster.environment
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, cluster.address], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "holding\n"
        yield lambda: holder.communicate("over\n", timeout=60)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([*QUICK, "scale.workers=2"], "2 workers x 1 CPU"),
        (["sweep", "cnn", "--space", "optim.lr=loguniform(1e-4,1e-2)", "--trials", "2", *QUICK[2:]], "1 worker x 1 CPU"),
        (
            ["sweep", "cnn", "--space", "optim.lr=loguniform(1e-4,1e-2)", "--trials", "1", *QUICK[2:], "scale.workers=2"],
            "2 workers x 1 CPU",
        ),
    ],
)
def test_who_waits_says_for_what_and_who_holds_it(closed, tmp_path, words, wanted):
    with held(closed) as let_go:
        running = start([*words, f"storage={tmp_path}", "name=waits"], cwd=tmp_path, **with_token(closed))
        assert running.stderr
        said = next(line for line in running.stderr if "waiting for" in line)
        assert f"waiting for {wanted}: 0 of 2 CPUs free; 2 CPUs held by job" in said
        let_go()
        code, told, err = finish(running)
    assert code == 0, err
    assert f"got {wanted}" in err
    assert told["workers"] == 2 if words[0] == "train" else {trial["status"] for trial in told["trials"]} == {"finished"}


@pytest.mark.slow
def test_a_control_plane_that_goes_away_ends_the_command_with_a_sentence_and_the_command_goes_on(tmp_path):
    long = ["train", "cnn", "train.steps=3000", "train.batch=8", "train.checkpoint_every=100", "scale.threads=1", "track.register=false"]
    words = [*long, f"storage={tmp_path}", "name=lost", "--json"]
    checkpoints = tmp_path / "cnn" / "lost" / "checkpoints"
    with head(cpus=2) as cluster:
        running = start(words, cwd=tmp_path, RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
        until(lambda: list(checkpoints.glob("step-*/MANIFEST.json")), running)
        [plane] = cluster.processes("gcs_server")
        plane.send_signal(signal.SIGKILL)
        code, told, err = finish(running)
    assert code == 12, err
    assert "control plane" in told["error"]
    assert "resume with: raylway train cnn" in err
    code, told, err = raylway(*words, "scale.workers=0", cwd=tmp_path)
    assert code == 0, err
    assert told["resumed_from_step"] >= 100


@pytest.mark.slow
def test_a_driver_whose_own_node_dies_ends_with_a_sentence(tmp_path):
    long = ["train", "cnn", "train.steps=200000", "train.batch=8", "train.checkpoint_every=100", "scale.threads=1", "track.register=false"]
    checkpoints = tmp_path / "cnn" / "orphan" / "checkpoints"
    with head(cpus=2) as cluster:
        words = [*long, f"storage={tmp_path}", "name=orphan", "--json"]
        running = start(words, cwd=tmp_path, RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
        until(lambda: list(checkpoints.glob("step-*/MANIFEST.json")), running)
        cluster.look_away()
        [raylet] = cluster.processes("raylet")
        raylet.send_signal(signal.SIGKILL)
        code, told, err = finish(running)
        assert cluster.processes("gcs_server")
    assert code == 12, err
    assert "this machine's own node of the cluster (its raylet) at" in told["error"]
    assert "resume with: raylway train cnn" in err


@pytest.mark.slow
def test_a_machine_that_is_no_node_and_another_python_are_told_before_anything_starts(tmp_path):
    words = [*QUICK, f"storage={tmp_path}"]
    with head(cpus=1) as cluster:
        where = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        elsewhere = ["unshare", "-Urpf", "--mount-proc", sys.executable, "-m", "pipelines", *words]  # where no raylet is to be seen
        environment = os.environ | where | {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(elsewhere, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 12, done.stderr
        assert "this machine is none of its nodes" in done.stderr
        assert "raylway submit" in done.stderr
        subprocess.run([sys.executable, "-c", ANOTHER_PYTHON, cluster.address], env=os.environ | where, check=True, timeout=120)
        code, told, _ = raylway(*words, cwd=tmp_path, **where)
    assert code == 12
    assert "the cluster runs Ray" in told["error"]
    assert "on Python 3.99.1, this is Ray" in told["error"]


ANOTHER_PYTHON = """
import json, sys
from ray._common.usage import usage_constants, usage_lib
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient
control = GcsClient(address=sys.argv[1])
told = usage_lib.get_cluster_metadata(control) | {"python_version": "3.99.1"}
control.internal_kv_put(usage_constants.CLUSTER_METADATA_KEY, json.dumps(told).encode(), True, KV_NAMESPACE_CLUSTER)
"""
