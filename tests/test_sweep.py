"""A sweep from end to end, in one process: what it finds, what it keeps, what it says, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil

import pytest

from pipelines import config
from pipelines.errors import RecipeError, WorkerFailed
from pipelines.run_record import RunFolder
from pipelines.run_states import CONFIG
from pipelines.screen import Screen
from pipelines.search.ledger import Ledger
from pipelines.verbs.sweep import sweep
from pipelines.verbs.train import train
from tests.cli import CPU_QUICK, finish, raylway, start, until
from tests.trained import storage_with

QUICK = ("train.epochs=2", "sweep.search=random", "model.filters=8", "model.hidden=16", *CPU_QUICK)
SPACE = ("sweep.space.optim.lr=loguniform(1e-4, 1e-1)",)


def swept(storage, name, *settings, more=None):
    return sweep("cnn", [f"storage={storage}", f"name={name}", *QUICK, *(settings or SPACE)], more=more, screen=Screen())


def ledger(storage, name):
    return Ledger(storage / "cnn" / name / "ledger.jsonl")


def bits(trials):
    return [trial.outcome["weights_sha256"] for trial in trials.values()]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, empty_database):
    """A storage of this file's own."""
    return storage_with(tmp_path_factory.mktemp("swept"), empty_database)


@pytest.fixture(scope="module")
def found(tracked):
    """A sweep of five trials, of which the best two keep their checkpoints."""
    return swept(tracked, "five", *SPACE, "sweep.trials=5", "sweep.keep=2")


@pytest.fixture(scope="module")
def client(tracked):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{tracked}/mlflow.db")


# ---- what it finds


def test_the_result_is_the_contract_of_the_design(found):
    assert {"sweep_id", "status", "trials", "best", "model", "seconds"} <= set(found)
    assert len(found["trials"]) == 5
    assert {"run_id", "params", "metrics", "status", "seconds"} <= set(found["trials"][0])
    assert found["best"] in found["trials"]
    assert found["best"]["metrics"]["val/accuracy"] == max(trial["metrics"]["val/accuracy"] for trial in found["trials"])
    assert (found["status"], found["metric"], found["mode"], found["model"]) == ("finished", "val/accuracy", "max", None)


def test_a_trial_is_the_run_that_train_makes_of_its_settings(found, tracked):
    trial = found["trials"][1]
    alone = train(
        config.load(
            "cnn", [f"storage={tracked}", "name=trained-alone", *QUICK, f"optim.lr={trial['params']['optim.lr']!r}", "track.register=false"]
        ),
        screen=Screen(),
    )
    assert ledger(tracked, "five").trials[1].outcome["weights_sha256"] == alone["weights_sha256"]
    assert trial["metrics"]["val/accuracy"] == alone["metrics"]["val/accuracy"]


def test_no_trial_of_a_search_is_scored_on_the_test_rows(found):
    assert not [name for trial in found["trials"] for name in trial["metrics"] if name.startswith(("test/", "baseline/"))]


def test_only_the_best_keep_their_checkpoints(found, tracked):
    order = sorted(found["trials"], key=lambda trial: -trial["metrics"]["val/accuracy"])
    kept = {int(path.parents[1].name) for path in (tracked / "cnn" / "five").glob("*/checkpoints/step-*")}
    assert kept == {trial["trial"] for trial in order[:2]}


def test_mlflow_has_one_parent_and_below_it_the_trials_named_by_what_differs(found, client):
    experiment = client.get_experiment_by_name("cnn").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found['run_id']}'")
    assert {run.info.run_id for run in children} == {trial["run_id"] for trial in found["trials"]}
    for trial in found["trials"]:
        run = client.get_run(trial["run_id"])
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"lr={trial['params']['optim.lr']:.3g}"
        assert run.data.params["optim.lr"] == str(trial["params"]["optim.lr"])
        assert run.data.tags["raylway.sweep"] == found["sweep_id"]
        assert len(client.get_metric_history(trial["run_id"], "val/accuracy")) == 2
        figures = {file.path for file in client.list_artifacts(trial["run_id"], "figures")}
        assert figures == {f"figures/{name}.png" for name in ("curves", "confusion_matrix", "worst_mistakes")}
        assert "config.yaml" in {file.path for file in client.list_artifacts(trial["run_id"])}


def test_the_parents_description_is_the_leaderboard_with_links(found, client):
    parent = client.get_run(found["run_id"])
    note = parent.data.tags["mlflow.note.content"]
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "five")
    lines = [line for line in note.splitlines() if line.startswith("| [")]
    assert len(lines) == 5
    assert f"runs/{found['best']['run_id']}" in lines[0]
    assert found["compare_url"] in note
    assert parent.data.tags["sweep.space.optim.lr"] == "loguniform(1e-4, 1e-1)"
    best = [point.value for point in client.get_metric_history(found["run_id"], "best/val/accuracy")]
    assert best == sorted(best)
    assert best[-1] == found["best"]["metrics"]["val/accuracy"]


# ---- again, longer, elsewhere


def test_the_same_command_again_runs_nothing_and_tells_the_same(found, tracked):
    again = swept(tracked, "five", *SPACE, "sweep.trials=5", "sweep.keep=2")
    assert {key: again[key] for key in ("trials", "best", "run_id")} == {key: found[key] for key in ("trials", "best", "run_id")}


@pytest.mark.long
def test_a_finished_sweep_is_extended_and_a_changed_space_takes_over_what_lies_in_it(tracked):
    swept(tracked, "longer", "train.epochs=1", "sweep.space.model.filters=choice(4, 8)", "sweep.trials=2")
    first = ledger(tracked, "longer").trials
    more = swept(tracked, "longer", "train.epochs=1", "sweep.space.model.filters=choice(4, 8, 12)", more=1)
    assert len(more["trials"]) == 3
    space = ("sweep.space.model.filters=choice(8, 12)", "sweep.space.optim.lr=choice(0.001, 0.01)")
    wider = swept(tracked, "longer", "train.epochs=1", *space, "sweep.trials=4")
    both = ledger(tracked, "longer").trials
    assert [both[number].params for number in first] == [trial.params for trial in first.values()]
    assert len(wider["trials"]) == 4
    assert len(both) == 3 + 2, "the two of three old trials that lie in the new space are not run again"


def test_a_space_that_is_used_up_ends_the_sweep_before_its_trials(tracked):
    result = swept(tracked, "small", "train.epochs=1", "sweep.space.model.filters=grid(4, 8)", "sweep.search=grid", "sweep.trials=9")
    assert [trial["params"] for trial in result["trials"]] == [{"model.filters": 4}, {"model.filters": 8}]


@pytest.mark.long
def test_kill_9_and_the_same_command_end_as_if_nothing_had_been(tmp_path, tracked, found, empty_database):
    shutil.copytree(tracked / "datasets", tmp_path / "runs" / "datasets")
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    long = ["sweep", "cnn", *QUICK, "train.epochs=8", "train.checkpoint_every=20", "name=killed", "--json", "--trials", "3"]
    command = [*long, "--space", "optim.lr=loguniform(1e-4,1e-1)"]
    process = start(command, cwd=tmp_path)
    path = tmp_path / "runs" / "cnn" / "killed"
    until(lambda: list(path.glob("0001/checkpoints/step-*/MANIFEST.json")), process)
    process.kill()
    process.communicate()
    before = Ledger(path / "ledger.jsonl").trials
    assert [trial.status for trial in before.values()] == ["finished", "running"]
    code, result, err = raylway(*command, cwd=tmp_path)
    assert code == 0, err
    assert "2 of 3 trials are known, 1 of them go on" in err
    after = Ledger(path / "ledger.jsonl").trials
    assert after[1].outcome["resumed_from_step"] > 0
    whole = swept(tracked, "undisturbed", *SPACE, "train.epochs=8", "sweep.trials=3")
    undisturbed = ledger(tracked, "undisturbed").trials
    assert [trial.params for trial in after.values()] == [trial.params for trial in undisturbed.values()]
    assert [trial.outcome["weights_sha256"] for trial in after.values()] == [
        trial.outcome["weights_sha256"] for trial in undisturbed.values()
    ]
    assert [trial["metrics"]["val/loss"] for trial in result["trials"]] == [trial["metrics"]["val/loss"] for trial in whole["trials"]]
    assert statuses(tmp_path) == ["FINISHED"] * 4


@pytest.mark.long
def test_a_stopped_sweep_says_how_to_go_on_and_is_killed_in_mlflow(tmp_path, tracked, found, empty_database):
    shutil.copytree(tracked / "datasets", tmp_path / "runs" / "datasets")
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    process = start(
        ["sweep", "cnn", *QUICK, "train.epochs=3000", "name=stopped", "--space", "optim.lr=loguniform(1e-4,1e-1)"], cwd=tmp_path
    )
    until(lambda: list((tmp_path / "runs" / "cnn" / "stopped").glob("0000/mlflow.json")), process)
    process.terminate()
    code, _, err = finish(process)
    assert code == 130
    assert "resume with: raylway sweep cnn" in err
    assert "--space 'optim.lr=loguniform(1e-4,1e-1)'" in err
    assert statuses(tmp_path) == ["KILLED"] * 2


def statuses(place):
    from mlflow import MlflowClient

    there = MlflowClient(f"sqlite:///{place}/runs/mlflow.db")
    return sorted(run.info.status for run in there.search_runs([there.get_experiment_by_name("cnn").experiment_id]))


# ---- trials that fail


def test_a_trial_that_diverges_is_recorded_with_its_cause_and_the_sweep_goes_on(tracked, client):
    result = swept(tracked, "diverging", "sweep.space.optim.lr=grid(1.0e+30, 0.02)", "sweep.search=grid")
    assert [trial["status"] for trial in result["trials"]] == ["failed", "finished"]
    assert "no longer finite" in result["trials"][0]["cause"] or "the loss is" in result["trials"][0]["cause"]
    run = client.get_run(result["trials"][0]["run_id"])
    assert (run.info.status, run.data.tags["stage"], run.data.tags["exit_code"]) == ("FAILED", "failed", "14")
    assert run.data.tags["cause"] == result["trials"][0]["cause"]


def test_what_fails_the_first_three_trials_in_the_same_way_stops_the_sweep(tracked):
    with pytest.raises(WorkerFailed, match=r"model\.kernel=9 leaves nothing to pool") as stopped:
        swept(tracked, "broken", *SPACE, "model.kernel=9", "sweep.trials=6")
    assert stopped.value.failure.code == 13
    assert [trial.status for trial in ledger(tracked, "broken").trials.values()] == ["failed"] * 3


def test_settings_that_do_not_go_together_fail_their_trial_alone(tracked):
    settings = ("train.epochs=1", "sweep.space.train.batch=grid(128, 512)", "sweep.space.train.micro_batch=grid(64, 256)")
    result = swept(tracked, "batches", *settings, "sweep.search=grid")
    assert [trial["status"] for trial in result["trials"]] == ["finished", "failed", "finished", "finished"]
    assert "train.micro_batch=256 is larger than train.batch=128" in result["trials"][1]["cause"]


def test_a_trial_that_needs_more_memory_than_there_is_is_recorded_as_such(tracked, client):
    result = swept(tracked, "large", "sweep.space.model.hidden=grid(16, 40000000000)", "sweep.search=grid", "train.epochs=1")
    assert [trial["status"] for trial in result["trials"]] == ["finished", "failed"]
    assert client.get_run(result["trials"][1]["run_id"]).data.tags["exit_code"] == "11"


# ---- ended early, in whichever direction


def test_trials_are_ended_early_and_are_no_failures(tracked, client):
    settings = ("sweep.space.optim.lr=grid(0.02, 1.0e-6, 2.0e-6)", "sweep.search=grid", "sweep.scheduler=asha")
    result = swept(tracked, "early", *settings, "train.epochs=6")
    assert [trial["status"] for trial in result["trials"]] == ["finished", "stopped", "stopped"]
    run = client.get_run(result["trials"][1]["run_id"])
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "stopped early")


def test_another_metric_ranks_by_its_own_direction(tracked):
    result = swept(tracked, "by-loss", *SPACE, "sweep.metric=loss", "train.epochs=1", "sweep.trials=2")
    assert (result["metric"], result["mode"]) == ("val/loss", "min")
    assert result["best"]["metrics"]["val/loss"] == min(trial["metrics"]["val/loss"] for trial in result["trials"])


# ---- confirmed


@pytest.fixture(scope="module")
def confirmed(tracked):
    return swept(
        tracked, "confirmed", "sweep.space.optim.lr=grid(0.03, 0.02, 1.0e-5)", "sweep.search=grid", "sweep.confirm=2x3", "optim.lr=1.0e-4"
    )


@pytest.mark.long
def test_the_best_and_the_recipes_settings_are_trained_with_seeds_that_the_search_did_not_use(confirmed, tracked):
    trials = [trial for trial in ledger(tracked, "confirmed").trials.values() if trial.role == "confirm"]
    assert sorted({trial.params["train.seed"] for trial in trials}) == [1, 2, 3]
    assert {trial.params.get("optim.lr") for trial in trials} == {0.03, 0.02, None}
    assert len(trials) == 9
    assert len(confirmed["trials"]) == 3, "a confirmation is no trial of the search"


@pytest.mark.long
def test_the_verdict_is_of_the_test_rows_with_an_interval_that_scipy_confirms(confirmed):
    from scipy import stats

    first = confirmed["confirmed"]["entrants"][0]
    low, high = stats.t.interval(0.95, 2, loc=sum(first["values"]) / 3, scale=stats.sem(first["values"]))
    assert (high - low) / 2 == pytest.approx(first["half_width"])
    assert first["metric"] == "test/accuracy"
    told = "\n".join(confirmed["confirmed"]["verdict"])
    assert "over 3 seeds" in told
    assert "differs from the recipe's settings" in told


@pytest.mark.long
def test_the_winner_of_the_median_seed_is_registered_as_candidate(confirmed, client, tracked):
    version = client.get_model_version_by_alias("cnn", "candidate")
    assert int(version.version) == confirmed["model"]["version"]
    assert version.run_id == confirmed["confirmed"]["median_run_id"]
    trials = ledger(tracked, "confirmed").trials.values()
    rate = next(trial.params["optim.lr"] for trial in trials if trial.run_id == version.run_id)
    mine = sorted(trial.last_scores["val/accuracy"] for trial in trials if trial.role == "confirm" and trial.params.get("optim.lr") == rate)
    median = next(trial for trial in trials if trial.run_id == version.run_id)
    assert median.last_scores["val/accuracy"] == mine[1]
    kept = {path.parents[1].name for path in (tracked / "cnn" / "confirmed").glob("*/checkpoints/step-*")}
    assert {f"{trial.number:04}" for trial in trials if trial.role == "confirm"} & kept == {f"{median.number:04}"}


@pytest.mark.long
def test_a_confirmation_asked_for_again_is_not_trained_again(confirmed, tracked):
    before = len(ledger(tracked, "confirmed").trials)
    again = swept(
        tracked, "confirmed", "sweep.space.optim.lr=grid(0.03, 0.02, 1.0e-5)", "sweep.search=grid", "sweep.confirm=2x3", "optim.lr=1.0e-4"
    )
    assert len(ledger(tracked, "confirmed").trials) == before
    assert again["model"] == confirmed["model"]


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("sweep.space.optim.lr=loguniform(0, 1)",), "low above 0"),
        (("sweep.space.optim.lrr=uniform(0, 1)",), "did you mean optim.lr?"),
        (("sweep.space.scale.workers=choice(1, 2)",), "cannot be searched"),
        ((*SPACE, "sweep.search=grid"), "optim.lr has no end of values"),
        ((*SPACE, "sweep.scheduler=pbt", "scale.workers=2"), "have one worker"),
        (("sweep.space.model.filters=choice(1, 2)", "sweep.scheduler=pbt", "scale.workers=1"), "model.filters cannot change"),
        ((*SPACE, "sweep.metric=recall"), "say which direction is better"),
        ((*SPACE, "sweep.confirm=3"), "sweep.confirm"),
        (("sweep.space.train.seed=randint(0, 9)", "sweep.confirm=1x2"), "train.seed cannot be searched as well"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(tmp_path, settings, told):
    with pytest.raises(RecipeError) as refused:
        sweep("cnn", [f"storage={tmp_path}/runs", *settings], screen=Screen())
    assert told in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_shows_the_arithmetic_and_starts_nothing(tmp_path):
    arguments = ("sweep", "cnn", "scale.cpus=1", "--space", "optim.lr=loguniform(1e-4,1e-1)", "--space", "model.filters=choice(8,16)")
    code, plan, err = raylway(*arguments, "--trials", "7", "--dry-run", "--json", cwd=tmp_path)
    assert code == 0, err
    assert plan["sweep"]["trials"] == 7
    assert plan["sweep"]["search"] == "tpe"
    assert "CPUs / (1 CPU) = " in plan["sweep"]["room"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_can_never_fit_is_refused_with_its_arithmetic_and_exit_code_12(tmp_path):
    code, result, err = raylway(
        "sweep", "cnn", "scale.workers=999", "train.batch=999", "--space", "optim.lr=uniform(0.1,1)", "--json", cwd=tmp_path
    )
    assert (code, result["exit_code"]) == (12, 12)
    assert "999 workers x 1 CPU" in err


def test_the_whole_settings_of_a_trial_are_in_its_folder(found, tracked):
    import yaml

    folder = RunFolder(tracked / "cnn" / "five" / "0000")
    assert yaml.safe_load(folder.read(CONFIG))["optim"]["lr"] == found["trials"][0]["params"]["optim.lr"]
    assert json.loads((tracked / "cnn" / "five" / "result.json").read_text())["sweep_id"] == "five"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", config.recipes())
def test_every_recipe_can_be_searched(recipe, tracked):
    settings = ["sweep.space.optim.lr=loguniform(1e-4, 1e-2)", "sweep.trials=2", "train.epochs=null", "train.steps=3", *CPU_QUICK]
    result = sweep(recipe, [f"storage={tracked}", f"name=search-{recipe.replace('_', '-')}", *settings], screen=Screen())
    assert [trial["status"] for trial in result["trials"]] == ["finished", "finished"]
