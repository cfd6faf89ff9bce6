"""A sweep whose tracking server goes away: trials go on, nothing is lost, nothing is there twice, and it says what to type."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipelines.search.ledger import Ledger
from pipelines.tracking.client import connect
from tests.cli import finish, raylway, start, until
from tests.services.told import check_all_told

pytestmark = pytest.mark.services
SPACE = ("--space", "optim.lr=loguniform(1e-4,1e-2)")
TRIALS = ("train.steps=600", "train.batch=8", "train.log_every=10", "train.eval_every=200", "sweep.trials=8", "sweep.concurrent=4")


class Sweeping:
    """`raylway sweep` of eight trials, four at once, against `uri`, in a folder of its own."""

    def __init__(self, cwd, uri, cluster, login, *settings):
        self.experiment = cwd.name.replace("_", "-").lower()[:60]
        where = ("scale.cpus=1", f"track.experiment={self.experiment}", "track.register=false", f"track.uri={uri}")
        self.command = ("sweep", "cnn", *TRIALS, *where, *settings, *SPACE, "--json")
        self.cwd, self.login = cwd, login | cluster.login
        self.process = start(self.command, cwd=cwd, **self.login)

    @property
    def folder(self) -> Path:
        [found] = self.cwd.glob(f"runs/{self.experiment}/*")
        return found

    def until_ended(self, count):
        """Until so many trials have ended."""
        until(lambda: self._ended() >= count, self.process)

    def _ended(self):
        ledgers = list(self.cwd.glob(f"runs/{self.experiment}/*/ledger.jsonl"))
        return sum(trial.ended for each in ledgers for trial in Ledger(each).trials.values())


def check_whole(sweeping, uri):
    """The sweep and its eight trials are there once, closed, with every point of their journals."""
    client = connect(uri)
    found = client.search_runs([client.get_experiment_by_name(sweeping.experiment).experiment_id])
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert (len(found), len(trials), {run.info.status for run in found}) == (9, 8, {"FINISHED"})
    assert len({run.data.tags["raylway.trial"] for run in trials}) == 8
    assert "| optim.lr |" in parent.data.tags["mlflow.note.content"], "the leaderboard is its description"
    for run in trials:
        check_all_told(uri, run, Path(run.data.tags["raylway.folder"]))
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "figures"}
    return {run.info.run_id for run in trials}


def test_a_server_that_is_killed_and_started_again_in_the_middle_of_a_sweep(server, cluster, tmp_path):
    sweeping = Sweeping(tmp_path, server.uri, cluster, server.login)
    sweeping.until_ended(1)
    server.kill()
    sweeping.until_ended(5)  # trials end, and new ones begin, all the same
    server.start()
    code, result, err = finish(sweeping.process)
    assert code == 0, err
    assert result["status"] == "finished"
    assert check_whole(sweeping, server.uri) == {trial["run_id"] for trial in result["trials"]}


@pytest.mark.parametrize("fault", ["error", "silence"])
def test_a_server_that_stays_away_or_hangs_holds_no_trial_up_and_gets_the_rest_by_what_the_sweep_says(
    server, proxy, cluster, tmp_path, fault
):
    sweeping = Sweeping(tmp_path, proxy.uri, cluster, server.login, "track.wait_seconds=3")
    sweeping.until_ended(1)
    proxy.begin(fault)
    code, failed, err = finish(sweeping.process)
    assert (code, failed["exit_code"]) == (12, 12), err
    assert proxy.faults, "MLflow was asked meanwhile"
    assert proxy.answered <= 1, "and answered at once only what had been asked before"
    assert [trial.status for trial in Ledger(sweeping.folder / "ledger.jsonl").trials.values()] == ["finished"] * 8
    assert "nothing is lost" in err
    [said] = [line.strip() for line in err.splitlines() if line.strip().startswith("raylway track --sync ")]
    proxy.end()
    for _ in range(2):  # the second time there is nothing to do
        code, synced, err = raylway(*shlex.split(said)[1:], "--json", cwd=tmp_path, **server.login)
        assert (code, synced["unsent"], {run["status"] for run in synced["runs"]}) == (0, 0, {"finished"}), err
    check_whole(sweeping, server.uri)
