"""Groups of rows by the values of a column, whatever these are."""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.reports import groups


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
