"""Rows are grouped by the values of a column, whatever these are; a run's row scores sum up to the scores that training gave."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.reports import ARTIFACT, groups, read_row_scores
from pipelines.tracking import facts, lookup
from tests.trained import storage_with, trained


def sizes(values) -> dict[str, int]:
    return {name: int(inside.sum()) for name, inside in groups(np.array(values, dtype=object)).items()}


def test_each_value_is_a_group_and_so_is_a_missing_one():
    assert sizes(["b", "a", None, "b", float("nan")]) == {"(missing)": 2, "a": 1, "b": 2}
    assert sizes([1, 2, 2, None]) == {"(missing)": 1, "1": 1, "2": 2}
    assert sizes([True, False, True]) == {"False": 1, "True": 2}


def test_many_numbers_are_cut_into_quarters_that_hold_every_row_once():
    values = [*np.random.default_rng(0).normal(size=1000).tolist(), None]
    found = groups(np.array(values, dtype=object))
    assert len(found) == 5
    assert np.stack(list(found.values())).sum(0).tolist() == [1] * 1001
    assert [int(inside.sum()) for name, inside in found.items() if name != "(missing)"] == [250] * 4


def test_numbers_of_which_most_are_one_value_make_fewer_groups():
    values = [0.0] * 900 + list(range(1, 101))
    found = groups(np.array(values, dtype=object))
    assert np.stack(list(found.values())).sum(0).tolist() == [1] * 1000


def test_of_many_names_the_commonest_stand_alone():
    values = [f"name {number}" for number in range(30)] + ["often"] * 10
    found = sizes(values)
    assert found["often"] == 10
    assert found["(others)"] == 11
    assert len(found) == 21


def test_a_long_text_names_its_group_on_one_short_line():
    [name] = sizes(["a\nb " + "x" * 100])
    assert "\n" not in name
    assert len(name) == 60


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    return storage_with(tmp_path_factory.mktemp("scored"), empty_database)


@pytest.mark.parametrize(("recipe", "together"), [("cnn", False), ("lstm", True), ("gpt", True), ("lstm_text", False)])
def test_a_finished_run_keeps_the_scores_of_each_test_row(place, tmp_path, recipe, together):
    result = trained(place, recipe=recipe)
    with lookup.opened(f"sqlite:///{place}/mlflow.db") as client:
        kept = read_row_scores(facts.artifact(client, result["run_id"], ARTIFACT, tmp_path))
    tested = {name.removeprefix("test/"): value for name, value in result["metrics"].items() if name.startswith("test/")}
    common = set(tested) & set(kept.scores)
    assert common
    for name in common:
        assert kept.scores[name].value == pytest.approx(tested[name], rel=1e-4), name
    assert (kept.span > 1) == together
    assert len(kept) > 1
