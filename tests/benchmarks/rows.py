"""A row of the table, and how it comes from repeated measurements: medians, and ratios taken pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """What is shown of one comparison; `met` is None where there is no goal."""

    benchmark: str
    ours: str
    reference: str = ""
    ratio: str = ""
    goal: str = ""
    met: bool | None = None


def interleave(
    ours: Callable[[int], float], reference: Callable[[int], float], *, pairs: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measurements of both, taken in turns; each function is told the number of the pair."""
    measured = [(ours(number), reference(number)) for number in range(pairs)]
    return tuple(mine for mine, _ in measured), tuple(other for _, other in measured)


def ratio_at_least(benchmark: str, ours: Sequence[float], reference: Sequence[float], *, unit: str, bound: float) -> Row:
    """More is better, as of rates."""
    return _compared(benchmark, ours, reference, unit, f">= {bound}", lambda ratio: ratio >= bound)


def ratio_at_most(benchmark: str, ours: Sequence[float], reference: Sequence[float], *, unit: str, bound: float | None) -> Row:
    """Less is better, as of seconds; with `bound` None the ratio is shown without a goal."""
    if bound is None:
        return _compared(benchmark, ours, reference, unit, "", lambda ratio: None)
    return _compared(benchmark, ours, reference, unit, f"<= {bound}", lambda ratio: ratio <= bound)


def below(benchmark: str, ours: Sequence[float], *, unit: str, bound: float) -> Row:
    """A cost that has a limit and nothing to be compared with."""
    return Row(benchmark, _shown(ours, unit), goal=f"< {bound:g} {unit}", met=median(ours) < bound)


def _compared(
    benchmark: str, ours: Sequence[float], reference: Sequence[float], unit: str, goal: str, met: Callable[[float], bool | None]
) -> Row:
    ratios = [mine / other for mine, other in zip(ours, reference, strict=True)]
    middle = median(ratios)
    spread = f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return Row(benchmark, _shown(ours, unit), _shown(reference, unit), spread, goal, met(middle))


def _shown(values: Sequence[float], unit: str) -> str:
    middle = median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 1 else 2
    return f"{middle:,.{digits}f} {unit}"
