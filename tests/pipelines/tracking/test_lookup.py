"""Runs are found by what a person calls them; what is not there is said with what is."""

from __future__ import annotations

import shutil

import pytest

from pipelines.errors import RecipeError, StorageError
from pipelines.tracking.client import connect
from pipelines.tracking.facts import config, text
from pipelines.tracking.lookup import named, of_experiment, of_sweep, opened, ranked, score

BEGAN = 1_700_000_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_database):
    """(a client of a storage, the ids of its runs by name): two experiments, a sweep, a failed run, two runs of one name."""
    place = tmp_path_factory.mktemp("kept")
    shutil.copy(empty_database, place / "mlflow.db")
    client = connect(f"sqlite:///{place}/mlflow.db")
    cnn, lstm = (client.create_experiment(name, artifact_location=(place / name).as_uri()) for name in ("cnn", "lstm"))
    ids = {}

    def run(experiment, name, age, *, status="FINISHED", score=None, headline="max accuracy", **tags):
        created = client.create_run(experiment, run_name=name, start_time=BEGAN - age, tags={"raylway.headline": headline} | tags)
        ids[name] = created.info.run_id
        if score is not None:
            client.log_metric(ids[name], f"test/{headline.split()[1]}", score)
        client.set_terminated(ids[name], status)

    run(cnn, "good", 4000, score=0.9)
    run(cnn, "twice", 3500, score=0.1)
    run(cnn, "twice", 3000, score=0.8)
    run(cnn, "failed", 2000, status="FAILED", score=0.99)
    run(cnn, "other-metric", 5000, score=3.0, headline="min loss")
    run(lstm, "small", 1500, score=0.2, headline="min mse")
    run(lstm, "large", 1000, score=0.3, headline="min mse")
    run(lstm, "parent-1", 900, headline="min mse")
    run(lstm, "parent-2", 800, headline="min mse")
    for number, parent in ((1, "parent-1"), (2, "parent-2"), (3, "parent-2")):
        run(lstm, f"trial-{number}", 700 - number, **{"mlflow.parentRunId": ids[parent], "raylway.sweep": "search"})
    client.log_text(ids["good"], "optim:\n  lr: 0.5\n", "config.yaml")
    return client, ids


def test_a_run_is_found_by_id_name_latest_and_best(made):
    client, ids = made
    assert named(client, ids["failed"]).name == "failed"
    assert named(client, "good").run_id == ids["good"]
    assert score(named(client, "twice")) == 0.8
    assert named(client, "latest").name == "trial-3"
    assert named(client, "latest", experiment="cnn").name == "twice"
    assert named(client, "best").name == "small"
    assert named(client, "best", experiment="cnn").name == "good"


def test_trials_are_those_of_the_newest_sweep_of_the_name(made):
    assert {run.name for run in of_sweep(made[0], "search")} == {"trial-2", "trial-3"}


def test_the_best_come_first_and_what_is_judged_otherwise_is_left_out(made):
    client, _ = made
    assert [run.name for run in ranked(of_experiment(client, "lstm"))] == ["small", "large"]
    assert [run.name for run in ranked(of_experiment(client, "cnn"))] == ["good", "twice", "twice"]


def test_what_was_kept_with_a_run_is_read(made):
    client, ids = made
    assert config(client, named(client, "good")) == "optim:\n  lr: 0.5\n"
    assert text(client, ids["good"], "no/such.txt") is None
    with pytest.raises(StorageError, match=r"large: its config.yaml is not in MLflow"):
        config(client, named(client, "large"))


@pytest.mark.parametrize(
    ("look", "sentence"),
    [
        (lambda client: named(client, "goood"), "goood: there is no such run; did you mean good?; runs, the newest first: trial-3, .*"),
        (lambda client: named(client, "0" * 32), "0{32}: there is no such run; runs"),
        (lambda client: named(client, "small", experiment="cnn"), "small: there is no such run; runs.*: failed, twice, good"),
        (lambda client: named(client, "latest", experiment="cn"), "cn: there is no such experiment; did you mean cnn?; experiments: Def"),
        (lambda client: named(client, "best", experiment="Default"), "best: no run has finished yet in experiment Default"),
        (lambda client: of_sweep(client, "searh"), "searh: there is no such sweep; did you mean search?; sweeps: search"),
    ],
)
def test_what_is_unknown_is_said_with_what_exists(made, look, sentence):
    with pytest.raises(RecipeError, match=sentence.replace("?", "[?]")):
        look(made[0])


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("sqlite:///{}/none/mlflow.db", "none/mlflow.db: no runs are kept there yet"),
        ("http://me:hunter2@127.0.0.1:9", r"http://me:\*\*\*@127.0.0.1:9: no MLflow server answers"),
        ("sqlite:///{}/broken.db", "MLflow at sqlite:///.*/broken.db cannot be used"),
    ],
)
def test_what_cannot_be_reached_is_one_sentence_and_nothing_is_made(tmp_path, uri, sentence):
    (tmp_path / "broken.db").write_text("not a database, but text that is long enough to look at")
    with pytest.raises(StorageError, match=sentence), opened(uri.format(tmp_path)) as client:
        client.search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["broken.db"]
