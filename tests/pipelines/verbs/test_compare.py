"""Runs side by side: only what differs, intervals, is a difference real, cost; and what is said where there is nothing to compare."""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from pipelines.data import dataset as prepared
from pipelines.data.preparation import in_process
from pipelines.data.store import store_of
from pipelines.errors import RecipeError, StorageError, code_of
from pipelines.evaluation import models, split_scores
from pipelines.evaluation.reports import RowScores
from pipelines.screen import Screen
from pipelines.tracking.lookup import TrackedRun
from pipelines.verbs.compare import compare, comparisons
from tests.cli import ROOT, raylway
from tests.trained import storage_with, trained
from workloads.judging import Score

ROWS = 200


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    return storage_with(tmp_path_factory.mktemp("compared"), empty_database)


@pytest.fixture(scope="module")
def several(place):
    """Four runs by name: a good one, one that has hardly learnt, one on other rows, one of another task."""
    settings = {
        "good": ("optim.lr=0.01",),
        "poor": ("optim.lr=0.0002",),
        "other-rows": ("optim.lr=0.01", "data.seed=1"),
        "series": (),
    }
    recipes = {"series": "lstm"}
    return {
        name: trained(place, *given, f"name={name}", "track.register=false", recipe=recipes.get(name, "cnn"))
        for name, given in settings.items()
    }


def compared(place, *called, **options):
    given = {"experiment": None, "sweep": None} | options
    return compare(called, [f"storage={place}"], **given, screen=Screen(as_json=True))


def test_only_what_differs_is_shown(place, several):
    result = compared(place, "poor", "good")
    assert [(one["group"], one["name"], one["values"]) for one in result["differences"]] == [
        ("settings", "optim.lr", ("0.0002", "0.01")),
    ]
    assert [run["run_name"] for run in result["runs"]] == ["poor", "good"]
    assert {one["name"] for one in compared(place, "good", "other-rows")["differences"]} == {"data.seed", "fingerprint"}


def test_intervals_and_the_test_are_of_what_the_models_say_of_each_row(place, several):
    result = compared(place, "poor", "good")
    right = {}
    for name in ("good", "poor"):
        model = models.find(name, [f"storage={place}"])
        dataset = prepared.proven(store_of(model.run.data, model.run.root), model.fingerprint)
        right[name] = split_scores.judged(model, dataset, "test", in_process).scores["accuracy"].total == 1
    [verdict] = result["comparisons"]
    gained, lost = int((right["good"] & ~right["poor"]).sum()), int((~right["good"] & right["poor"]).sum())
    assert verdict["test"] == f"McNemar's exact test, {gained} : {lost}"
    assert verdict["difference"] == pytest.approx(right["good"].mean() - right["poor"].mean())
    assert (verdict["best"], verdict["other"], verdict["same_rows"], verdict["real"]) == ("good", "poor", True, True)
    for run in result["runs"]:
        low, high = run["intervals"]["test/accuracy"]
        mean = right[run["run_name"]].mean()
        assert run["metrics"]["test/accuracy"] == pytest.approx(mean)
        assert low < mean < high
        deviation = np.sqrt(mean * (1 - mean) / len(right["good"]))
        assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_runs_on_other_rows_are_compared_without_pairing_and_that_is_said(place, several):
    [verdict] = compared(place, "good", "other-rows")["comparisons"]
    assert (verdict["same_rows"], verdict["test"], verdict["real"]) == (False, "bootstrap of each", False)


def test_runs_that_are_judged_otherwise_have_no_verdict(place, several):
    result = compared(place, "good", "series")
    assert (result["headline"], result["comparisons"]) == (None, [])
    assert {"test/accuracy", "test/mse"} <= {name for run in result["runs"] for name in run["metrics"]}


def test_an_experiments_best_come_first_and_cost_what_they_cost(place, several):
    result = compared(place, experiment="cnn")
    scores = [run["metrics"]["test/accuracy"] for run in result["runs"]]
    assert scores == sorted(scores, reverse=True)
    assert (len(scores), result["of"]) == (3, 3)
    for run in result["runs"]:
        cost = run["cost"]
        total = several[run["run_name"]]["seconds"]["total"]
        assert total / 2 < cost["seconds"] <= total, "all but what closing the run in MLflow took"
        assert cost["cpu_hours"] == pytest.approx(cost["seconds"] / 3600), "one thread"


def test_the_link_is_mlflows_page_of_these_runs(place, several):
    result = compared(place, "good", several["poor"]["run_id"])
    asked = parse_qs(urlsplit(result["compare_url"].replace("/#/", "/")).query)
    assert [several[name]["run_id"] for name in ("good", "poor")] == json.loads(asked["runs"][0])


@pytest.mark.parametrize(
    ("called", "options", "sentence"),
    [
        (["good", "goood"], {}, "goood: there is no such run; did you mean good?; runs, the newest first: series, other-rows, poor, good"),
        (["good", "good"], {}, "good and good are the same run, good"),
        (["good"], {}, "good is one run; name two different ones, or give --experiment or --sweep"),
        ([], {}, "name two runs or more"),
        ([], {"experiment": "lstm"}, "experiment lstm has one run, series"),
        ([], {"experiment": "bert"}, "bert: there is no such experiment; experiments: Default, cnn, lstm"),
        ([], {"sweep": "x"}, "x: there is no such sweep; there are no sweeps"),
        (["good", "poor"], {"sweep": "x"}, "name runs, or give --sweep, not both"),
    ],
)
def test_what_cannot_be_compared_is_said_with_what_there_is(place, several, called, options, sentence):
    with pytest.raises(RecipeError) as error:
        compared(place, *called, **options)
    assert sentence in str(error.value)
    assert code_of(error.value) == 2


def test_where_nothing_is_kept_is_one_sentence(tmp_path):
    with pytest.raises(StorageError, match="no runs are kept there yet"):
        compared(tmp_path, "a", "b")


def test_the_command_prints_json_last_and_needs_no_torch(place, several, tmp_path):
    code, result, err = raylway("compare", "poor", "best", "--experiment", "cnn", f"storage={place}", "--json", cwd=tmp_path)
    assert code == 0, err
    assert result["runs"][0]["run_name"] == "poor"
    assert "the difference is real (p = " in err
    assert f"raylway ui --storage {place}" in err
    program = (
        "import sys; from pipelines.verbs.compare import compare; from pipelines.screen import Screen\n"
        f"compare(['good', 'poor'], ['storage={place}'], experiment=None, sweep=None, screen=Screen(as_json=True))\n"
        "print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "False"], done.stderr


def answers(wrong, *, name, headline="max accuracy", data="d" * 16, rows=ROWS):
    """(a run, its scores by row): all right but for the rows `wrong`."""
    right = np.ones(rows)
    right[list(wrong)] = 0
    metric = headline.split()[1]
    tags = {"raylway.headline": headline, "data.fingerprint": data}
    run = TrackedRun("0" * 32, name, "1", "FINISHED", 0.0, 1.0, {f"test/{metric}": right.mean()}, tags)
    return run, RowScores({metric: Score(right, np.ones(rows))}, 1)


def test_mcnemar_counts_only_the_rows_where_two_models_differ():
    headline, [comparison] = comparisons([answers(range(20), name="poor"), answers(range(10, 20), name="good")])
    assert headline == "test/accuracy"
    assert (comparison.best, comparison.other, comparison.same_rows) == ("good", "poor", True)
    assert comparison.difference.value == pytest.approx(10 / ROWS)
    assert comparison.p == pytest.approx(2 * 0.5**10)
    assert comparison.real
    assert "good against poor: accuracy +0.0500 [+0.0" in str(comparison)
    assert "the difference is real (p = 0.002, McNemar's exact test, 10 : 0, the same test rows)" in str(comparison)


def test_few_rows_are_luck():
    _, [comparison] = comparisons([answers([1, 2, 3], name="a"), answers([3], name="b")])
    assert comparison.p == pytest.approx(0.5)
    assert not comparison.real
    assert "it may be chance" in str(comparison)


def test_several_comparisons_are_corrected_as_holm_says():
    wrong = {"best": 0, "six": 6, "eight": 8, "3": 3}
    _, found = comparisons([answers(range(count), name=name) for name, count in wrong.items()])
    raw = {"3": 2 * 0.5**3, "six": 2 * 0.5**6, "eight": 2 * 0.5**8}
    assert {comparison.other: comparison.p for comparison in found} == pytest.approx(
        {"eight": 3 * raw["eight"], "six": 2 * raw["six"], "3": raw["3"]},
    )
    assert {comparison.other for comparison in found if comparison.real} == {"eight"}
    assert raw["six"] < 0.05 < 2 * raw["six"], "real by itself, but not as one of three"


def test_equal_answers_are_said_to_be_equal():
    _, [comparison] = comparisons([answers([5], name="a"), answers([5], name="b")])
    assert str(comparison) == "a and b are equal in accuracy"
    assert (comparison.p, comparison.real) == (1.0, False)


def test_other_rows_are_not_paired():
    sides = [answers(range(60), name="poor", data="e" * 16, rows=300), answers(range(10), name="good")]
    _, [comparison] = comparisons(sides)
    assert (comparison.same_rows, comparison.difference.test, comparison.real) == (False, "bootstrap of each", True)
    deviation = np.sqrt(0.8 * 0.2 / 300 + 0.95 * 0.05 / ROWS)
    assert comparison.difference.value == pytest.approx(0.15)
    assert np.ptp(comparison.difference.interval) == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_less_is_better_where_the_headline_says_so():
    _, [comparison] = comparisons([answers(range(50), name="few", headline="min mse"), answers([], name="many", headline="min mse")])
    assert comparison.best == "few"


def test_there_is_no_comparison_over_different_metrics_or_without_scores_by_row():
    one, other = answers([1], name="a"), answers([2], name="b", headline="min mse")
    assert comparisons([one, other]) == (None, [])
    assert comparisons([one, (answers([2], name="b")[0], None)]) == ("test/accuracy", [])
