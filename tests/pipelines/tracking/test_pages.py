"""An experiment's description: the five best, the truth after any end of a run, and never what a person wrote lost."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from pipelines.tracking import pages
from pipelines.tracking.client import HEADLINE, NOTE, connect


@pytest.fixture
def client(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return connect(f"sqlite:///{tmp_path}/mlflow.db")


def finished(client, experiment, name, score, *, headline="max accuracy", status="FINISHED"):
    run = client.create_run(experiment, run_name=name, tags={HEADLINE: headline, "data.fingerprint": "f" * 16})
    if score is not None:
        client.log_metric(run.info.run_id, f"test/{headline.split()[1]}", score)
    client.set_terminated(run.info.run_id, status)
    return run.info.run_id


def note(client, experiment):
    return client.get_experiment(experiment).tags.get(NOTE, "")


def order(client, experiment):
    """The names in the table, in its order."""
    return [line.split("[")[1].split("]")[0] for line in note(client, experiment).splitlines() if "](#/experiments/" in line]


def test_the_five_best_stand_in_order_with_links(client):
    experiment = client.create_experiment("cnn")
    for name, score in (("c", 0.7), ("a", 0.9), ("f", 0.1), ("b", 0.8), ("e", 0.3), ("d", 0.5)):
        run_id = finished(client, experiment, name, score)
    finished(client, experiment, "failed", 0.99, status="FAILED")
    finished(client, experiment, "unscored", None)
    finished(client, experiment, "other", 0.95, headline="min loss")
    finished(client, experiment, "nan", float("nan"))
    pages.update_board(client, experiment, "max accuracy")
    assert order(client, experiment) == ["a", "b", "c", "d", "e"]
    assert note(client, experiment).startswith("## The five best: 0.9000 accuracy by a\n")
    assert f"(#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning)" in note(client, experiment)
    assert "raylway compare --experiment cnn" in note(client, experiment)


def test_where_less_is_better_the_least_comes_first(client):
    experiment = client.create_experiment("lstm")
    for name, score in (("large", 0.3), ("small", 0.2)):
        finished(client, experiment, name, score, headline="min mse")
    pages.update_board(client, experiment, "min mse")
    assert order(client, experiment) == ["small", "large"]


def test_what_a_person_wrote_stays_and_nothing_is_written_where_nothing_ended(client):
    experiment = client.create_experiment("cnn")
    pages.update_board(client, experiment, "max accuracy")
    assert note(client, experiment) == ""
    client.set_experiment_tag(experiment, NOTE, "Digits of *our* scanners.")
    for name in ("one", "two"):
        finished(client, experiment, name, 0.5)
        pages.update_board(client, experiment, "max accuracy")
    assert note(client, experiment).startswith("Digits of *our* scanners.\n\n## The five best")
    assert note(client, experiment).count("## The five best") == 1
    assert order(client, experiment) == ["two", "one"], "of equals the newer"


def test_runs_that_end_at_once_all_get_their_place(client):
    experiment = client.create_experiment("cnn")
    troubles = []

    def end(number):
        try:
            finished(client, experiment, f"run-{number}", number / 10)
            pages.update_board(client, experiment, "max accuracy")
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=end, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles
    assert order(client, experiment) == ["run-4", "run-3", "run-2", "run-1", "run-0"]


def test_it_costs_little_beside_many_runs(client):
    experiment = client.create_experiment("cnn")
    for number in range(60):
        finished(client, experiment, f"run-{number}", number / 100)
    pages.update_board(client, experiment, "max accuracy")
    took = []
    for number in range(3):
        finished(client, experiment, f"better-{number}", 0.9 + number / 100)
        began = time.process_time()
        pages.update_board(client, experiment, "max accuracy")
        took.append(time.process_time() - began)
    assert min(took) < 0.1
