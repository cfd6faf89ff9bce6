"""The rules of a promotion, checked on the candidate's test rows: bounds of metrics, latency, and a paired test against the champion."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import numpy as np

from pipelines.data.dataset import Dataset
from pipelines.errors import StorageError
from pipelines.evaluation import models, reports, statistics
from pipelines.evaluation.models import Model
from pipelines.evaluation.reports import Report
from pipelines.evaluation.statistics import Difference
from pipelines.settings import Promote
from pipelines.tracking.promotions import Standing
from workloads.base import DataError
from workloads.judging import Judged, Judging
from workloads.served import Served

ALPHA = 1 - statistics.CONFIDENCE
Better = Mapping[str, Literal["max", "min"]]
SPLIT = "test"
"""The rows that a candidate is judged on."""
_WARM, _MEASURED = 5, 30


@dataclass(frozen=True)
class Rule:
    """A rule: the bound that is wanted and the value that was found."""

    rule: str
    wanted: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """All rules, passed or failed."""

    rules: list[Rule]
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return all(rule.passed for rule in self.rules)


def judge(
    model: Model,
    standing: Standing,
    dataset: Dataset,
    columns: Mapping[str, np.ndarray],
    *,
    encode: Callable[[Model], Dataset],
    score: Callable[[Model, Dataset], Judged],
) -> Verdict:
    """Check every rule of the model's settings, and compare it with the champion where there is one.

    `dataset` is what the model was trained on, `columns` those that the rules slice its test rows by; `encode` encodes the same rows as
    another model needs them, and `score` gives each example of SPLIT its scores.
    """
    asked, judging = model.run.promote, model.workload.judging(model.encoding)
    judged = score(model, dataset)
    latency_ms = milliseconds(model, dataset) if asked.max_latency_ms else None
    rules = floors(asked, reports.plain(judging, judged, columns), model.workload.better, latency_ms=latency_ms)
    if not asked.must_beat or standing.champion is None:
        if asked.must_beat and standing.lost is not None:  # no other model takes the place of a champion that is gone unasked
            why = f"version {standing.lost} was deleted, or its alias removed"
            instead = "--rollback goes back to the one before, --force --reason goes on without"
            rules.append(Rule("against the champion", "better", f"{why}; {instead}", False))
        return Verdict(rules)

    def scored(other: Model) -> Judged:
        if other.encoding == model.encoding and other.workload.task_settings() == model.workload.task_settings():
            return score(replace(other, run=model.run), dataset)
        other = replace(other, run=other.run.model_copy(update={"data": model.run.data, "scale": model.run.scale}))
        return score(other, encode(other))

    compared, warnings = _against_champion(model, judging, judged, standing.champion, scored)
    return Verdict([*rules, compared], warnings)


def floors(asked: Promote, report: Report, better: Better, *, latency_ms: float | None) -> list[Rule]:
    """The rules that need no champion: bounds of metrics, of all rows and of each slice, and the latency of one row."""
    rules = [_bound(f"{name}", name, limit, report.whole.metrics.get(name), better) for name, limit in {**asked.min, **asked.max}.items()]
    for column, limits in asked.slices.items():
        large = {value: group for value, group in report.slices.get(column, {}).items() if group.rows >= asked.min_rows}
        if not large:
            why = "no value has so many; promote.min_rows says how many count"
            rules.append(Rule(f"slices of {column}", f">= {asked.min_rows} rows", why, False))
        for value, group in large.items():
            where = f"{column}={value} ({group.rows:,} rows)"
            rules += [_bound(f"{where} {name}", name, limit, group.metrics.get(name), better) for name, limit in limits.items()]
    if asked.max_latency_ms is not None and latency_ms is not None:
        limit = asked.max_latency_ms
        rules.append(Rule("latency of one row", f"<= {limit:g} ms", f"{latency_ms:.2f} ms", latency_ms <= limit))
    return rules


def against(asked: Promote, metric: str, better: Better, difference: Difference, *, champion: str) -> Rule:
    """Better than the champion, beyond chance; or, with a margin, not worse by more than that, beyond chance."""
    sign = 1 if better[metric] == "max" else -1
    gain = sign * difference.value
    ends = difference.interval
    range_ = f" [{ends.low:+.4f}, {ends.high:+.4f}]" if ends else ""
    found = f"{difference.value:+.4f}{range_}, p = {difference.p:.3g} ({difference.test})"
    if asked.margin:
        worst = min(sign * ends.low, sign * ends.high) if ends else gain
        return Rule(f"{metric} against {champion}", f"not worse by {asked.margin:g}", found, worst > -asked.margin)
    return Rule(f"{metric} against {champion}", f"better, p < {ALPHA:.2g}", found, gain > 0 and difference.p < ALPHA)


def table(rules: Sequence[Rule]) -> list[list[str]]:
    """A table of rules for people, its head first."""
    return [["rule", "wanted", "found", ""], *([rule.rule, rule.wanted, rule.found, "ok" if rule.passed else "FAILED"] for rule in rules)]


def sentence(rules: Sequence[Rule]) -> str:
    """The reasons why a model is refused."""
    return "; ".join(f"{rule.rule}: {rule.found}, wanted {rule.wanted}" for rule in rules if not rule.passed)


def milliseconds(model: Model, dataset: Dataset) -> float:
    """Median time of 30 predictions of one raw training row by the model as it is registered, on this CPU, after five to warm up."""
    if not dataset.sample:
        raise StorageError(f"{model.called}: its dataset {dataset.manifest.fingerprint} has no raw rows to be timed with")
    served = Served(model.workload, model.encoding, model.network())
    given = model.serving.example({name: column.copy() for name, column in dataset.sample.items()})  # mapped ones cannot be written
    row, seconds = given.iloc[:1] if hasattr(given, "iloc") else given[:1], []
    for number in range(_WARM + _MEASURED):
        began = time.perf_counter()
        served.predict(row)
        if number >= _WARM:
            seconds.append(time.perf_counter() - began)
    return 1000 * median(seconds)


def _bound(rule: str, name: str, limit: float, value: float | None, better: Better) -> Rule:
    least = better[name.rpartition("/")[2]] == "max"
    wanted = f"{'>=' if least else '<='} {limit:g}"
    if value is None:
        return Rule(rule, wanted, "the model has no such metric", False)
    return Rule(rule, wanted, f"{value:.4f}", value >= limit if least else value <= limit)


def _against_champion(
    model: Model, judging: Judging, judged: Judged, champion: int, scored: Callable[[Model], Judged]
) -> tuple[Rule, tuple[str, ...]]:
    """The champion's test rows, `scored`, compared with the candidate's; and warnings about that comparison."""
    assert model.version
    asked, champion_uri = model.run.promote, f"models:/{model.version.name}/{champion}"
    metric = asked.metric or model.workload.headline.metric
    name, wanted = f"{metric} against {champion_uri}", f"not worse by {asked.margin:g}" if asked.margin else "better"
    where = [f"storage={model.run.storage}", f"track.uri={model.tracking_uri}"]
    try:
        other = models.find(champion_uri, where)
        if other.workload.task != model.workload.task:
            return Rule(name, wanted, f"it is a model of {other.workload.task}, this one of {model.workload.task}", False), ()
        theirs = judging.aligned(scored(other), other.workload.judging(other.encoding))
        if len(theirs) != len(judged) or not np.allclose(theirs.columns["truth"], judged.columns["truth"], rtol=1e-3, atol=1e-3):
            return Rule(name, wanted, "it cannot be given the same test rows, so the two cannot be compared", False), ()
        difference = _difference(judging, judged, theirs, metric)
    except (ValueError, DataError, StorageError) as error:
        return Rule(name, wanted, str(error), False), ()
    other_data = f"{champion_uri} was trained on other data ({other.fingerprint}); some of these test rows may have been among them"
    warnings = (*other.warnings, *([other_data] if other.fingerprint != model.fingerprint else []))
    return against(asked, metric, model.workload.better, difference, champion=champion_uri), warnings


def _difference(judging: Judging, ours: Judged, theirs: Judged, metric: str) -> Difference:
    block = statistics.block_of(len(ours), judging.span)
    score, function = judging.derived.get(metric, (metric, None))
    if score in ours.scores:
        tested = statistics.difference(ours.scores[score], theirs.scores[score], block=block)
        if function is None:
            return tested
        drawn = statistics.apart(  # in the unit of the metric, not of the score that it is derived from
            lambda index: function(ours.scores[score].take(index).value) - function(theirs.scores[score].take(index).value),
            len(ours),
            block=block,
        )
        return replace(tested, value=drawn.value, interval=drawn.interval)
    return statistics.apart(
        lambda index: judging.joint_metrics(ours.take(index))[score] - judging.joint_metrics(theirs.take(index))[score],
        len(ours),
        block=block,
    )
