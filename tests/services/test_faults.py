"""A run whose tracking server fails in every way: it trains on, nothing is lost, nothing is there twice."""

from __future__ import annotations

import time

import pytest

from pipelines.tracking.client import connect
from tests.cli import CPU_QUICK, finish, raylway, start
from tests.services.told import check_all_told, journalled, only_run

pytestmark = pytest.mark.services
CNN = ("train", "cnn", "train.batch=8", "train.log_every=5", "train.checkpoint_every=500", *CPU_QUICK, "--json")


class Training:
    """`raylway train` in a folder of its own, against `uri`."""

    def __init__(self, cwd, uri, login, *settings):
        self.experiment = cwd.name.replace("_", "-").lower()[:60]
        self.command = (*CNN, f"track.uri={uri}", f"track.experiment={self.experiment}", *settings)
        self.cwd, self.login = cwd, login
        self.process = start(self.command, cwd=cwd, **login)

    @property
    def folder(self):
        [found] = self.cwd.glob(f"runs/{self.experiment}/*")
        return found

    def until(self, condition):
        deadline = time.monotonic() + 200
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def told(self):
        """Until MLflow was told something of its curves."""
        self.until(lambda: list(self.cwd.glob(f"runs/{self.experiment}/*/mlflow.json")) and '"offset": 0' not in self._state())

    def trained(self):
        self.until(lambda: (self.folder / "concluded.json").exists())

    def points(self):
        return len(journalled(self.folder)["loss"])

    def _state(self):
        return (self.folder / "mlflow.json").read_text()


def check_whole(training, uri, err, code, result):
    assert code == 0, err
    run = only_run(uri, training.experiment)
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "finished")
    assert run.info.run_id == result["run_id"]
    assert result["model"]["version"] == 1
    assert {file.path for file in connect(uri).list_artifacts(run.info.run_id)} >= {"config.yaml", "figures", "scores", "data.md"}
    check_all_told(uri, run, training.folder)


def test_a_server_that_is_killed_and_started_again_in_the_middle_of_a_run(server, tmp_path):
    training = Training(tmp_path, server.uri, server.login, "train.steps=4000", "track.register=killed")
    training.told()
    server.kill()
    before = training.points()
    training.until(lambda: training.points() > before + 20)  # steps go on
    server.start()
    code, result, err = finish(training.process)
    check_whole(training, server.uri, err, code, result)


@pytest.mark.parametrize("fault", ["error", "silence"])
def test_while_a_server_only_fails_or_hangs_training_comes_to_its_end_and_all_is_sent_when_it_is_back(server, proxy, tmp_path, fault):
    training = Training(tmp_path, proxy.uri, server.login, "train.steps=4000", f"track.register=faulty-{fault}")
    training.told()
    proxy.begin(fault)
    before = training.points()
    training.trained()
    assert proxy.faults, "MLflow was asked meanwhile"
    assert proxy.answered <= 1, "and answered at once only what had been asked before"
    assert training.points() == 4000 // 5 > before
    proxy.end()
    code, result, err = finish(training.process)
    assert fault == "silence" or f"MLflow at {proxy.uri} cannot be reached" in err
    check_whole(training, server.uri, err, code, result)


LOST = (
    *("runs/create", "runs/log-batch", "runs/update", "runs/log-inputs", "figures/curves.png"),
    *("logged-models", "registered-models/create", "model-versions/create", "registered-models/alias"),
)


def test_requests_that_were_done_and_whose_answers_were_lost_are_not_there_twice(server, proxy, tmp_path):
    for path in LOST:
        proxy.drop(path)
    training = Training(tmp_path, proxy.uri, server.login, "train.steps=200", "track.register=dropped")
    code, result, err = finish(training.process)
    assert not proxy.to_be_dropped
    check_whole(training, server.uri, err, code, result)


def test_a_server_that_stays_away_at_the_end_gets_the_rest_from_track_sync(server, proxy, tmp_path):
    training = Training(tmp_path, proxy.uri, server.login, "train.steps=300", "track.register=synced", "track.wait_seconds=3")
    training.told()
    proxy.begin("error")
    code, result, err = finish(training.process)
    assert (code, result["exit_code"]) == (12, 12)
    assert "nothing is lost" in err
    name = training.folder.name
    assert f"raylway track --sync {training.experiment}/{name}" in err
    code, listed, _ = raylway("track", "--json", cwd=tmp_path)
    assert [(run["status"], run["sent"]) for run in listed["runs"]] == [("trained", False)]
    code, failed, err = raylway("track", "--sync", "--json", cwd=tmp_path, **server.login)
    assert (code, failed["unsent"]) == (12, 1), err
    proxy.end()
    for _ in range(2):  # the second time there is nothing to do
        code, synced, err = raylway("track", "--sync", "--json", cwd=tmp_path, **server.login)
        assert (code, synced["unsent"], synced["runs"][0]["status"]) == (0, 0, "finished"), err
    code, result, err = raylway(*training.command, cwd=tmp_path, **server.login)
    check_whole(training, server.uri, err, code, result)


@pytest.mark.parametrize(
    ("login", "sentence"),
    [
        ({}, "asks for a login, and neither MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD nor MLFLOW_TRACKING_TOKEN are set"),
        (
            {"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": "no-such-password"},
            "it does not accept what MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say; set them in the environment",
        ),
    ],
)
def test_without_a_right_login_nothing_starts_and_the_error_says_what_to_set(server, tmp_path, login, sentence):
    code, result, err = raylway("train", "cnn", f"track.uri={server.uri}", "--json", cwd=tmp_path, **login)
    assert (code, result["exit_code"]) == (12, 12)
    assert sentence in err
    assert "no-such-password" not in err
    assert not list(tmp_path.glob("runs/cnn"))
