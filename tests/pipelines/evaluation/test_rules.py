"""Rules are arithmetic on what was found, in the direction in which a metric is better."""

from __future__ import annotations

import pytest

from pipelines import config
from pipelines.errors import RecipeError
from pipelines.evaluation import rules
from pipelines.evaluation.reports import Group, Report
from pipelines.evaluation.statistics import Difference, Interval
from pipelines.settings import Promote

BETTER = {"accuracy": "max", "loss": "min", "recall": "max"}
WHOLE = Group(100, {"accuracy": 0.9, "loss": 0.3, "class/ill/recall": 0.8}, {})


def verdicts(report: Report, latency_ms: float | None = None, **asked) -> list[tuple[str, bool]]:
    return [(rule.rule, rule.passed) for rule in rules.floors(Promote(**asked), report, BETTER, latency_ms=latency_ms)]


def test_floors_and_ceilings_hold_at_their_own_value():
    report = Report(WHOLE)
    assert verdicts(report, min={"accuracy": 0.9}, max={"loss": 0.3}) == [("accuracy", True), ("loss", True)]
    assert verdicts(report, min={"accuracy": 0.91}, max={"loss": 0.29}) == [("accuracy", False), ("loss", False)]


def test_one_class_has_a_floor_of_its_own_and_an_unknown_one_fails():
    assert verdicts(Report(WHOLE), min={"class/ill/recall": 0.8}) == [("class/ill/recall", True)]
    assert verdicts(Report(WHOLE), min={"class/well/recall": 0.1}) == [("class/well/recall", False)]


def test_every_value_of_a_slice_must_hold_unless_it_has_few_rows():
    wards = {name: Group(rows, {"accuracy": value}, {}) for name, rows, value in [("north", 50, 0.9), ("south", 40, 0.7), ("tiny", 3, 0.0)]}
    found = verdicts(Report(WHOLE, {"ward": wards}), slices={"ward": {"accuracy": 0.8}})
    assert found == [("ward=north (50 rows) accuracy", True), ("ward=south (40 rows) accuracy", False)]


def test_a_slice_of_which_no_value_has_enough_rows_is_not_passed_over():
    assert verdicts(Report(WHOLE, {"ward": {"tiny": Group(3, {"accuracy": 1.0}, {})}}), slices={"ward": {"accuracy": 0.8}}) == [
        ("slices of ward", False)
    ]


def test_latency_is_a_rule_only_where_it_is_asked():
    assert verdicts(Report(WHOLE), latency_ms=3.0) == []
    assert verdicts(Report(WHOLE), latency_ms=3.0, max_latency_ms=2.5) == [("latency of one row", False)]


@pytest.mark.parametrize(
    ("metric", "value", "p", "passed"),
    [
        ("accuracy", 0.02, 0.01, True),
        ("accuracy", 0.02, 0.2, False),
        ("accuracy", -0.02, 0.01, False),
        ("loss", -0.02, 0.01, True),
        ("loss", 0.02, 0.01, False),
    ],
)
def test_to_beat_is_to_be_better_beyond_chance(metric, value, p, passed):
    difference = Difference(value, Interval(value - 0.01, value + 0.01), p, "a test")
    assert rules.against(Promote(), metric, BETTER, difference, champion="models:/m/1").passed is passed


@pytest.mark.parametrize(("metric", "interval", "passed"), [("accuracy", (-0.004, 0.02), True), ("accuracy", (-0.006, 0.02), False),
                                                            ("loss", (-0.02, 0.004), True), ("loss", (-0.02, 0.006), False)])  # fmt: skip
def test_with_a_margin_it_is_enough_not_to_be_worse_by_more(metric, interval, passed):
    difference = Difference(sum(interval) / 2, Interval(*interval), 0.6, "a test")
    assert rules.against(Promote(margin=0.005), metric, BETTER, difference, champion="models:/m/1").passed is passed


def test_a_refusal_says_what_failed_and_what_was_wanted():
    found = rules.floors(Promote(min={"accuracy": 0.95, "class/ill/recall": 0.5}), Report(WHOLE), BETTER, latency_ms=None)
    assert rules.sentence(found) == "accuracy: 0.9000, wanted >= 0.95"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "promote.min.acuracy=0.9",
            "promote.min.acuracy: image classification has no such metric; did you mean accuracy?; there are: ",
        ),
        ("promote.min.loss=0.9", "promote.min.loss: of loss less is better; write promote.max.loss"),
        ("promote.max={f1: 0.5}", "promote.max.f1: of f1 more is better; write promote.min.f1"),
        ("promote.metric=mse", "promote.metric: image classification has no such metric"),
        ("promote.slices={ward: {acuracy: 0.9}}", "promote.slices.ward.acuracy: image classification has no such metric; did you mean"),
        ("promote.must_bet=champion", "promote.must_bet: no such setting; did you mean promote.must_beat?"),
        ("promote.must_beat=3", "promote.must_beat: input should be"),
    ],
)
def test_rules_of_what_there_is_not_are_refused_with_the_recipe(override, sentence):
    with pytest.raises(RecipeError) as raised:
        config.load("cnn", [override])
    assert sentence in str(raised.value)


def test_rules_are_written_in_a_recipe_as_on_the_command_line():
    run = config.load(
        "cnn", ["promote={min: {accuracy: 0.97}, must_beat: champion, slices: {label: {accuracy: 0.8}}, max_latency_ms: 20}"]
    ).run
    assert run.promote == Promote(min={"accuracy": 0.97}, slices={"label": {"accuracy": 0.8}}, max_latency_ms=20)
    assert run.promote.has_floors
    assert not config.load("cnn").run.promote.has_floors
