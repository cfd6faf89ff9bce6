"""The rules that a model must keep to become champion, each with what was found: pure arithmetic on reports that others make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.evaluation import statistics
from pipelines.evaluation.reports import Report
from pipelines.evaluation.statistics import Difference
from pipelines.settings import Promote

ALPHA = 1 - statistics.CONFIDENCE
Better = Mapping[str, Literal["max", "min"]]


@dataclass(frozen=True)
class Rule:
    """What was asked, what was found, and whether that is enough."""

    rule: str
    wanted: str
    found: str
    passed: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def floors(asked: Promote, report: Report, better: Better, *, latency_ms: float | None) -> list[Rule]:
    """The rules that need no rival: least and most values, of all rows and of each slice, and how long an answer takes."""
    found = [_bound(f"{name}", name, limit, report.whole.metrics.get(name), better) for name, limit in {**asked.min, **asked.max}.items()]
    for column, limits in asked.slices.items():
        large = {value: group for value, group in report.slices.get(column, {}).items() if group.rows >= asked.min_rows}
        if not large:
            found.append(
                failed(f"slices of {column}", f">= {asked.min_rows} rows", "no value has so many; promote.min_rows says how many count")
            )
        for value, group in large.items():
            where = f"{column}={value} ({group.rows:,} rows)"
            found += [_bound(f"{where} {name}", name, limit, group.metrics.get(name), better) for name, limit in limits.items()]
    if asked.max_latency_ms is not None and latency_ms is not None:
        limit = asked.max_latency_ms
        found.append(Rule("latency of one row", f"<= {limit:g} ms", f"{latency_ms:.2f} ms", latency_ms <= limit))
    return found


def against(asked: Promote, metric: str, better: Better, difference: Difference, *, rival: str) -> Rule:
    """Better than the rival, beyond chance; or, with a margin, not worse by more than that, beyond chance."""
    sign = 1 if better[metric] == "max" else -1
    gain = sign * difference.value
    ends = difference.interval
    range_ = f" [{ends.low:+.4f}, {ends.high:+.4f}]" if ends else ""
    found = f"{difference.value:+.4f}{range_}, p = {difference.p:.3g} ({difference.test})"
    if asked.margin:
        worst = min(sign * ends.low, sign * ends.high) if ends else gain
        return Rule(f"{metric} against {rival}", f"not worse by {asked.margin:g}", found, worst > -asked.margin)
    return Rule(f"{metric} against {rival}", f"better, p < {ALPHA:.2g}", found, gain > 0 and difference.p < ALPHA)


def failed(rule: str, wanted: str, why: str) -> Rule:
    """A rule that could not even be looked at."""
    return Rule(rule, wanted, why, False)


def table(rules: Sequence[Rule]) -> list[list[str]]:
    """The verdict for people, its head first."""
    return [["rule", "wanted", "found", ""], *([rule.rule, rule.wanted, rule.found, "ok" if rule.passed else "FAILED"] for rule in rules)]


def sentence(rules: Sequence[Rule]) -> str:
    """Why a model is refused."""
    return "; ".join(f"{rule.rule}: {rule.found}, wanted {rule.wanted}" for rule in rules if not rule.passed)


def _bound(rule: str, name: str, limit: float, value: float | None, better: Better) -> Rule:
    least = better[name.rpartition("/")[2]] == "max"
    wanted = f"{'>=' if least else '<='} {limit:g}"
    if value is None:
        return failed(rule, wanted, "the model has no such metric")
    return Rule(rule, wanted, f"{value:.4f}", value >= limit if least else value <= limit)
