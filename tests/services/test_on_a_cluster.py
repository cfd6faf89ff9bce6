"""Workers and trials on a Ray cluster, tracked by a team's server: all is told, once, and no secret is written anywhere."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from pipelines.tracking.client import connect
from tests.cli import raylway
from tests.services.told import check_all_told, only_run

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def planted(server, cluster):
    """Passwords and tokens in the environment of who trains: name -> value."""
    made_up = {name: f"canary{secrets.token_hex(8)}" for name in ("SOME_SERVICE_TOKEN", "AWS_SECRET_ACCESS_KEY")}
    return made_up | {name: value for name, value in (server.login | cluster.login).items() if name.endswith(("PASSWORD", "TOKEN"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("on-a-cluster")


def test_a_run_of_two_workers_is_told_whole(server, cluster, planted, place):
    given = ("train.steps=60", "train.log_every=1", "scale.workers=2", "scale.cpus=1", "track.experiment=two-workers", "track.register=two")
    login = server.login | cluster.login | planted
    command = ("train", "cnn", *given, f"track.uri={server.uri}", "--json")
    code, result, err = raylway(*command, cwd=place, **login)
    assert code == 0, err
    run = only_run(server.uri, "two-workers")
    assert (run.info.status, run.data.tags["raylway.workers"], result["workers"]) == ("FINISHED", "2", 2)
    check_all_told(server.uri, run, place / "runs" / "two-workers" / result["run_name"])


def test_a_sweep_of_eight_trials_at_four_at_once_is_told_whole(server, cluster, planted, place):
    given = ("train.steps=30", "train.log_every=2", "train.eval_every=10", "sweep.trials=8", "sweep.concurrent=4")
    space = ("--space", "optim.lr=loguniform(1e-4,1e-2)")
    where = ("scale.cpus=1", "track.experiment=searched", "track.register=false", f"track.uri={server.uri}")
    login = server.login | cluster.login | planted
    code, result, err = raylway("sweep", "cnn", *given, *where, *space, "--json", cwd=place, **login)
    assert code == 0, err
    assert "4 trials at once" in err
    client = connect(server.uri)
    found = client.search_runs([client.get_experiment_by_name("searched").experiment_id])
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert (len(found), len(trials), {run.info.status for run in found}) == (9, 8, {"FINISHED"})
    assert {run.info.run_id for run in trials} == {trial["run_id"] for trial in result["trials"]}
    for run in trials:
        check_all_told(server.uri, run, Path(run.data.tags["raylway.folder"]))


def test_no_secret_of_the_environment_is_in_a_run_in_ray_s_logs_or_in_the_server_s_databases(server, cluster, planted, place, postgres):
    """After the runs above: the folders of the runs and of the cluster's session, the databases, the artifacts."""
    written = {
        str(path): path.read_bytes() for folder in (place, cluster.folder, server.artifacts) for path in folder.rglob("*") if path.is_file()
    }
    written |= {name: postgres.dump(name) for name in ("mlflow", "mlflow_accounts")}
    assert any("/logs/" in name for name in written), "Ray's session was looked at"
    assert b"two-workers" in written["mlflow"]
    for name, canary in planted.items():
        assert not [file for file, content in written.items() if canary.encode() in content], name
