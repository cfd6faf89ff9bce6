"""Judge a candidate by the rules that its recipe states, on its own test rows: floors, latency, and a paired test against the champion."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

import numpy as np

from pipelines.data.dataset import Dataset
from pipelines.data.preparation import Each, plan_new, prepare
from pipelines.errors import StorageError
from pipelines.evaluation import models, reports, split_scores, statistics
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
_SPLIT = "test"
_WARM, _MEASURED = 5, 30


@dataclass(frozen=True)
class Rule:
    """A rule: the bound that is wanted, the value that was found, and whether it is enough."""

    rule: str
    wanted: str
    found: str
    passed: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The rules that a candidate keeps or breaks."""

    rules: list[Rule]
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return all(rule.passed for rule in self.rules)


def judge(model: Model, standing: Standing, each: Each) -> Verdict:
    """Every rule of the model's settings, and the comparison with the champion where there is one."""
    asked, workload = model.run.promote, model.workload
    judging, dataset = workload.judging(model.encoding), split_scores.own_data(model, each)
    judged = split_scores.judged(model, dataset, _SPLIT, each)
    report = reports.plain(judging, judged, _slice_columns(model, judging, dataset, len(judged)))
    latency_ms = milliseconds(model, dataset) if asked.max_latency_ms else None
    rules = floors(asked, report, workload.better, latency_ms=latency_ms)
    if not asked.must_beat or standing.champion is None:
        return Verdict(rules + _champion_lost(model, standing))
    compared, warnings = _against_champion(model, judging, judged, dataset, standing.champion, each)
    return Verdict([*rules, compared], warnings)


def floors(asked: Promote, report: Report, better: Better, *, latency_ms: float | None) -> list[Rule]:
    """The rules that need no champion: least and most values, of all rows and of each slice, and the latency of one row."""
    rules = [_bound(f"{name}", name, limit, report.whole.metrics.get(name), better) for name, limit in {**asked.min, **asked.max}.items()]
    for column, limits in asked.slices.items():
        large = {value: group for value, group in report.slices.get(column, {}).items() if group.rows >= asked.min_rows}
        if not large:
            rules.append(
                failed(f"slices of {column}", f">= {asked.min_rows} rows", "no value has so many; promote.min_rows says how many count")
            )
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


def failed(rule: str, wanted: str, why: str) -> Rule:
    """A rule that could not be checked."""
    return Rule(rule, wanted, why, False)


def table(rules: Sequence[Rule]) -> list[list[str]]:
    """A table of rules for people, its head first."""
    return [["rule", "wanted", "found", ""], *([rule.rule, rule.wanted, rule.found, "ok" if rule.passed else "FAILED"] for rule in rules)]


def sentence(rules: Sequence[Rule]) -> str:
    """The reasons why a model is refused."""
    return "; ".join(f"{rule.rule}: {rule.found}, wanted {rule.wanted}" for rule in rules if not rule.passed)


def milliseconds(model: Model, dataset: Dataset) -> float:
    """The median time of 30 predictions for one raw training row, made as a registered model does on this CPU, after five to warm up."""
    served = Served(model.workload, model.encoding, model.network())
    row = _raw_row(model, dataset)
    seconds = []
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
        return failed(rule, wanted, "the model has no such metric")
    return Rule(rule, wanted, f"{value:.4f}", value >= limit if least else value <= limit)


def _slice_columns(model: Model, judging: Judging, dataset: Dataset, examples: int) -> dict[str, np.ndarray]:
    """The columns that the rules slice by, of each test row."""
    columns = list(model.run.promote.slices)
    if not columns:
        return {}
    plan = plan_new(model.run, model.encoding, split=_SPLIT, called=model.called)
    reports.check_columns(columns, plan, judging)
    return reports.column_values(columns, plan, model, dataset, split=_SPLIT, examples=examples)


def _champion_lost(model: Model, standing: Standing) -> list[Rule]:
    """A rule that fails where there was a champion and its alias is gone: no other model takes its place unasked."""
    if standing.lost is None or not model.run.promote.must_beat:
        return []
    why = f"version {standing.lost} was deleted, or its alias removed"
    instead = "--rollback goes back to the one before, --force --reason goes on without"
    return [failed("against the champion", "better", f"{why}; {instead}")]


def _against_champion(
    model: Model, judging: Judging, judged: Judged, dataset: Dataset, champion: int, each: Each
) -> tuple[Rule, tuple[str, ...]]:
    """The champion on the same rows, compared with the candidate; and what a person should know of that comparison."""
    assert model.version
    metric = model.run.promote.metric or model.workload.headline.metric
    champion_uri = f"models:/{model.version.name}/{champion}"
    name, wanted = (
        f"{metric} against {champion_uri}",
        "better" if not model.run.promote.margin else f"not worse by {model.run.promote.margin:g}",
    )
    where = [f"storage={model.run.storage}", f"track.uri={model.tracking_uri}"]
    try:
        other = models.find(champion_uri, where)
        if other.workload.task != model.workload.task:
            return failed(name, wanted, f"it is a model of {other.workload.task}, this one of {model.workload.task}"), ()
        theirs = _on_the_same_rows(model, other, dataset, each)
        theirs = judging.aligned(theirs, other.workload.judging(other.encoding))
        if len(theirs) != len(judged) or not np.allclose(theirs.columns["truth"], judged.columns["truth"], rtol=1e-3, atol=1e-3):
            return failed(name, wanted, "it cannot be given the same test rows, so the two cannot be compared"), ()
        difference = _difference(judging, judged, theirs, metric)
    except (ValueError, DataError, StorageError) as error:
        return failed(name, wanted, str(error)), ()
    other_data = f"{champion_uri} was trained on other data ({other.fingerprint}); some of these test rows may have been among them"
    warnings = (*other.warnings, *([other_data] if other.fingerprint != model.fingerprint else []))
    return against(model.run.promote, metric, model.workload.better, difference, champion=champion_uri), warnings


def _on_the_same_rows(model: Model, other: Model, dataset: Dataset, each: Each) -> Judged:
    """Another model on the candidate's test rows: as they are prepared, or encoded anew by the other's encoding."""
    if other.encoding == model.encoding and other.workload.task_settings() == model.workload.task_settings():
        return split_scores.judged(replace(other, run=model.run), dataset, _SPLIT, each)
    reencoding = replace(other, run=other.run.model_copy(update={"data": model.run.data, "scale": model.run.scale}))
    plan = plan_new(reencoding.run, other.encoding, split=_SPLIT, called=other.called)
    return split_scores.judged(reencoding, prepare(reencoding.run, plan, each, encoding=other.encoding), _SPLIT, each)


def _difference(judging: Judging, ours: Judged, theirs: Judged, metric: str) -> Difference:
    block = statistics.block_of(len(ours), judging.span)
    score, function = judging.derived.get(metric, (metric, None))
    if score == "accuracy" and block == 1 and (ours.scores[score].count == 1).all():
        return statistics.mcnemar(ours.scores[score].total > 0, theirs.scores[score].total > 0)
    if score in ours.scores:
        tested = statistics.paired(ours.scores[score], theirs.scores[score], block=block)
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


def _raw_row(model: Model, dataset: Dataset) -> Any:
    if not dataset.sample:
        raise StorageError(f"{model.called}: its dataset {dataset.manifest.fingerprint} has no raw rows to be timed with")
    given = model.serving.example({name: column.copy() for name, column in dataset.sample.items()})  # mapped ones cannot be written
    return given.iloc[:1] if hasattr(given, "iloc") else given[:1]
