"""A real tracking server on loopback, killed and started again in the middle of a run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from pipelines.tracking import promotions, versions
from pipelines.tracking.mlflow import connect
from tests import promoter
from tests.cli import CPU_QUICK, finish, raylway, start

pytestmark = pytest.mark.services


class Server:
    """`mlflow server` on a port of its own, with its artifacts behind its proxy."""

    def __init__(self, folder, database):
        shutil.copy(database, folder / "mlflow.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder, self.uri = folder, f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self):
        kept = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination", f"{self._folder}/artifacts"]
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = (self._folder / "server.log").open("ab")
        command = [sys.executable, "-m", "mlflow", "server", *kept, *where]
        self._process = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self):
        os.killpg(self._process.pid, 9)
        self._process.wait()

    def _answers(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except (OSError, urllib.error.URLError):
            return False


@pytest.fixture
def server(tmp_path_factory, empty_database):
    started = Server(tmp_path_factory.mktemp("server"), empty_database)
    yield started
    started.kill()


def test_a_run_outlives_its_tracking_server_and_nothing_is_lost_or_doubled(server, tmp_path):
    train = ("train", "cnn", "train.steps=6000", "train.batch=8", f"track.uri={server.uri}", *CPU_QUICK, "--json")
    process = start(train, cwd=tmp_path)
    journal = tmp_path / "runs"
    while not list(journal.glob("cnn/*/mlflow.json")) or not list(journal.glob("cnn/*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    server.kill()
    time.sleep(3)
    server.start()
    code, result, err = finish(process)
    assert code == 0, err
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    points = [point.step for page in [client.get_metric_history(result["run_id"], "loss")] for point in page]
    assert points == list(range(10, 6001, 10))
    assert result["run_url"].startswith(f"{server.uri}/#/experiments/")


def test_a_server_that_is_gone_at_the_end_gets_all_when_the_command_is_given_again(server, tmp_path):
    train = ("train", "cnn", "train.steps=2000", "train.batch=8", f"track.uri={server.uri}", *CPU_QUICK, "--json")
    process = start(train, cwd=tmp_path)
    while not list(tmp_path.glob("runs/cnn/*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    server.kill()
    code, result, err = finish(process)
    assert (code, result["exit_code"]) == (12, 12)
    assert "nothing is lost" in err
    server.start()
    code, result, err = raylway(*train, cwd=tmp_path)
    assert code == 0, err
    assert result["resumed_from_step"] == 2000
    assert result["model"]["uri"] == "models:/cnn/1"


def test_a_model_on_a_server_is_judged_and_promoted_from_another_folder(server, tmp_path):
    """Its run's folder and its data are out of reach, so its files are fetched and its data prepared anew."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    where = (f"track.uri={server.uri}", *CPU_QUICK)
    for steps in (15, 200):
        assert raylway("train", "cnn", f"train.steps={steps}", *where, cwd=here)[0] == 0
    (here / "runs").rename(here / "moved")
    code, result, err = raylway("evaluate", "models:/cnn@candidate", *where, "--json", cwd=there, XDG_CACHE_HOME=str(there))
    assert code == 0, err
    assert result["run_url"].startswith(server.uri)
    code, promoted, err = raylway("promote", "cnn", *where, "--json", cwd=there, XDG_CACHE_HOME=str(there))
    assert (code, promoted["champion"], promoted["previous"]) == (0, 2, 1), err
    assert list(there.glob("raylway/models/*/data/model/weights.safetensors"))
    assert not list(there.rglob("*.py")), "the code that travels with a model is not even fetched"


def test_of_eight_promoters_through_a_server_exactly_one_wins(server, tmp_path):
    client = promoter.registry(server.uri, count=9)
    promotions.promote(client, "race", 1, judged_against=promotions.seen(client, "race"))
    said = promoter.raced(server.uri, list(range(2, 10)), tmp_path / "gate")
    winners = [version for version, text in zip(range(2, 10), said, strict=True) if text == "won"]
    assert len(winners) == 1, said
    assert versions.aliases(connect(server.uri), "race") == {"champion": winners[0], "previous": 1}
