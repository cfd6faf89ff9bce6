"""A space is what it says, is checked against the settings, and gives back exactly the values that it was given."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import config
from pipelines.errors import RecipeError
from pipelines.search import space
from pipelines.search.space import key_of, name_of, overrides, read


def problems(written):
    with pytest.raises(RecipeError) as raised:
        read(written)
    return list(raised.value.problems)


def checked(written):
    with pytest.raises(RecipeError) as raised:
        space.check(read(written), lambda more: config.load("cnn", more))
    return list(raised.value.problems)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("choice(16, 32, 64)", [16, 32, 64]),
        ("choice([16, 32])", [16, 32]),
        ("choice(lstm, 'gru', null, true, 0.5)", ["lstm", "gru", None, True, 0.5]),
        ("grid(1, 2)", [1, 2]),
        ("randint(3, 6)", [3, 4, 5]),
        ("quniform(0, 0.3, 0.1)", [0.0, 0.1, 0.2, 0.3]),
        ("uniform(0, 1)", None),
        ("loguniform(1e-4, 1e-1)", None),
    ],
)
def test_a_domain_has_the_values_that_ray_tunes_function_has(text, values):
    assert read({"optim.lr": text})["optim.lr"].values() == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loguniform(0, 1)", "low above 0"),
        ("uniform(1, 1)", "low must be below high"),
        ("uniform(1)", "uniform(low, high)"),
        ("randint(0.5, 2)", "whole numbers"),
        ("quniform(0, 1, 0)", "quniform(low, high, step)"),
        ("choice()", "choice(a, b, …)"),
        ("choice(1, 1.0)", "each value once"),
        ("normal(0, 1)", "there are: uniform"),
        ("__import__('os').system('x')", "is no space"),
        ("choice(__import__('os'))", "is no value"),
        ("uniform(nan, 1)", "uniform(low, high)"),
        ("0.1", "is no space"),
    ],
)
def test_what_is_no_domain_is_refused_with_what_would_be_right(text, told):
    [problem] = problems({"optim.lr": text})
    assert problem.startswith("sweep.space.optim.lr: ")
    assert told in problem


def test_every_problem_is_told_at_once():
    assert len(problems({"optim.lr": "uniform(2, 1)", "scale.workers": "choice(1, 2)", "data.seed": "randint(0, 9)"})) == 3


def test_a_sweep_without_a_space_says_how_to_give_one():
    assert "--space optim.lr=loguniform(1e-4,1e-1)" in problems({})[0]


def test_a_setting_that_does_not_exist_is_refused_with_the_nearest_name():
    assert checked({"optim.lrr": "uniform(0.1, 1)"}) == ["sweep.space: optim.lrr: no such setting; did you mean optim.lr? (command line)"]


def test_values_out_of_a_settings_bounds_or_of_another_type_are_refused():
    told = checked({"model.dropout": "uniform(0.5, 2)", "model.filters": "choice(16, many)"})
    assert any("model.dropout" in problem and "less than 1" in problem for problem in told)
    assert any("model.filters" in problem and "integer" in problem for problem in told)


def test_a_range_that_ends_where_a_setting_does_is_accepted():
    space.check(read({"model.dropout": "uniform(0, 1)", "optim.lr": "loguniform(1e-5, 1)"}), lambda more: config.load("cnn", more))


@given(
    st.dictionaries(
        st.sampled_from(["optim.lr", "model.dropout", "train.batch"]),
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60), st.booleans(), st.none(), st.text(max_size=20)
        ),
    )
)
def test_overrides_give_back_the_very_same_values(params):
    import yaml

    for override, value in zip(overrides(params), params.values(), strict=True):
        back = yaml.safe_load(override.partition("=")[2])
        assert type(back) is type(value)
        assert back == value
        assert not isinstance(value, float) or math.copysign(1, back) == math.copysign(1, value)


def test_equal_settings_have_equal_keys_whatever_their_order_and_spelling():
    assert key_of({"a": 1, "b": 2.0}) == key_of({"b": 2, "a": 1.0})
    assert key_of({"a": 1}) != key_of({"a": True})
    assert key_of({"a": "1"}) != key_of({"a": 1})


def test_trials_are_named_by_what_differs():
    assert name_of({"optim.lr": 0.00312345, "model.filters": 32}) == "lr=0.00312 filters=32"
    assert name_of({"model.name": "a", "optim.name": "b"}) == "model.name=a optim.name=b"


def test_an_old_trial_fits_a_changed_space_if_all_its_settings_lie_in_it():
    made = read({"optim.lr": "loguniform(1e-4, 1e-1)", "model.filters": "choice(16, 32)"})
    base = {"optim.lr": 1e-3, "model.filters": 32, "model.hidden": 128}
    assert made.fitted({"optim.lr": 0.01}, base) == {"optim.lr": 0.01, "model.filters": 32}
    assert made.fitted({"optim.lr": 0.01, "model.hidden": 128}, base) is not None
    assert made.fitted({"optim.lr": 0.01, "model.hidden": 64}, base) is None
    assert made.fitted({"optim.lr": 0.5}, base) is None
    assert made.fitted({"optim.lr": 0.01, "model.filters": 64}, base) is None


@pytest.mark.parametrize("text", ["loguniform(1e-4, 1e-1)", "uniform(0.1, 1)", "choice(0.1, 0.2, 0.4)", "quniform(0.1, 0.5, 0.1)"])
def test_exploring_stays_inside_the_domain_and_moves(text):
    domain = read({"optim.lr": text})["optim.lr"]
    random = Random(0)
    value = domain.ends()[0]
    seen = set()
    for _ in range(200):
        value = domain.changed(value, random)
        assert domain.holds(value)
        seen.add(value)
    assert len(seen) > 2
