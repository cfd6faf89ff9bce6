"""A suggestion is a function of the seed, the trial's number and the facts; what ends early is decided by the facts as well."""

from __future__ import annotations

import math

import pytest

from pipelines.search.ledger import Trial
from pipelines.search.space import key_of, read
from pipelines.search.suggest import Search

SPACE = {"optim.lr": "loguniform(1e-4, 1e-1)", "model.filters": "choice(16, 32, 64)"}


def search(space=SPACE, *, method="tpe", scheduler="none", mode="max", grace=1, seed=0):
    return Search(read(space), mode=mode, method=method, scheduler=scheduler, grace=grace, seed=seed)


def worth(point):
    """Best at a learning rate of 0.01, whatever the filters are."""
    return -abs(math.log10(point["optim.lr"]) + 2)


def searched(made, count, facts=()):
    """Points that are suggested one after another, each told before the next; with those of `facts` before."""
    trials = list(facts)
    made.replay([(trial, trial.params) for trial in trials], "val/accuracy")
    for number in range(len(trials), count):
        point = made.suggest(number)
        made.report(number, 1, worth(point))
        made.end(number, worth(point), stopped=False)
        trials.append(Trial(number, point, point, status="finished", validations={1: {"val/accuracy": worth(point)}}))
    return trials


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_search_that_was_stopped_goes_on_with_what_it_would_have_suggested(method):
    whole = searched(search(method=method), 20)
    resumed = searched(search(method=method), 20, whole[:12])
    assert [trial.params for trial in resumed] == [trial.params for trial in whole]


def test_another_seed_searches_elsewhere():
    first = {key_of(trial.params) for trial in searched(search(seed=0), 5)}
    assert not first & {key_of(trial.params) for trial in searched(search(seed=1), 5)}


def test_tpe_finds_a_better_point_than_chance():
    best = {
        method: [max(worth(trial.params) for trial in searched(search(method=method, seed=seed), 40)) for seed in range(5)]
        for method in ("tpe", "random")
    }
    assert sum(best["tpe"]) > sum(best["random"])


def test_a_grid_is_gone_through_once_in_order():
    made = search({"model.filters": "grid(1, 2)", "optim.lr": "grid(0.1, 0.2)"}, method="grid")
    points = [made.suggest(number) for number in range(5)]
    assert [(point["model.filters"], point["optim.lr"]) for point in points[:4]] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert points[4] is None


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_identical_settings_are_not_suggested_twice_and_an_end_is_found(method):
    made = search({"model.filters": "choice(16, 32, 64)", "optim.lr": "quniform(0.1, 0.2, 0.1)"}, method=method)
    points = []
    while (point := made.suggest(len(points))) is not None:
        made.end(len(points), 0.5, stopped=False)
        points.append(key_of(point))
    assert len(points) == len(set(points)) == 6


def test_an_axis_of_a_grid_is_gone_through_evenly_beside_what_is_sampled():
    made = search({"model.filters": "grid(16, 32)", "optim.lr": "loguniform(1e-4, 1e-1)"}, method="random")
    filters = [made.suggest(number)["model.filters"] for number in range(6)]
    assert filters == [16, 32, 16, 32, 16, 32]


def test_values_come_back_as_they_were_written():
    made = search({"model.a": "choice(1, true, 1.5, lstm, null)", "model.b": "randint(0, 3)"}, method="random")
    points = [made.suggest(number) for number in range(15)]
    assert {repr(point["model.a"]) for point in points} == {"1", "True", "1.5", "'lstm'", "None"}
    assert {type(point["model.b"]) for point in points} == {int}


def ended_early(scheduler, values, *, mode="max", grace=1):
    """For each trial, the look at which it was ended, or None; each trial's values come after those of the one before."""
    made = search(scheduler=scheduler, mode=mode, grace=grace, method="random")
    found = []
    for number, curve in enumerate(values):
        made.suggest(number)
        look = next((look for look, value in enumerate(curve, 1) if made.report(number, look, value)), None)
        made.end(number, curve[(look or len(curve)) - 1], stopped=look is not None)
        found.append(look)
    return found


def test_asha_ends_what_is_not_among_the_best_third_of_a_rung():
    assert ended_early("asha", [[0.9] * 9, [0.8] * 9, [0.1] * 9, [0.95] * 9])[2:] == [1, None]


def test_median_stopping_ends_what_is_below_the_median_of_the_others_at_that_look():
    good = [[0.5, 0.6, 0.7, 0.8]] * 5
    assert ended_early("median", [*good, [0.4, 0.45, 0.5, 0.5], [0.6, 0.7, 0.8, 0.9]])[5:] == [1, None]
    assert ended_early("median", [*good, [0.5, 0.6, 0.3, 0.3]])[5:] == [3]


def test_where_less_is_better_the_greater_is_ended():
    assert ended_early("asha", [[0.1] * 9, [0.2] * 9, [0.9] * 9], mode="min")[2] == 1


def test_grace_is_given():
    assert ended_early("asha", [[0.9] * 9, [0.8] * 9, [0.1] * 9], grace=4)[2] == 4


def test_what_ended_early_is_ended_the_same_after_a_restart():
    curves = [[0.9] * 9, [0.8] * 9, [0.1] * 9]
    made = search(scheduler="asha", method="random")
    points = [made.suggest(number) for number in range(3)]
    facts = [
        (Trial(number, point, point, status="finished", validations={look: {"m": v} for look, v in enumerate(curves[number], 1)}), point)
        for number, point in enumerate(points[:2])
    ]
    again = search(scheduler="asha", method="random")
    again.replay(facts, "m")
    assert again.suggest(2) == points[2]
    assert again.report(2, 1, 0.1)


def test_nan_is_no_reason_to_end_and_teaches_nothing():
    made = search(scheduler="asha")
    made.suggest(0)
    assert not made.report(0, 1, math.nan)
    made.end(0, math.nan, stopped=False)
    assert made.importance() == {}


def test_importance_names_the_setting_that_matters():
    made = search(method="random")
    searched(made, 30)
    found = made.importance()
    assert next(iter(found)) == "optim.lr"
    assert sum(found.values()) == pytest.approx(1)
