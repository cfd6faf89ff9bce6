"""A sweep as people see it: the leaderboard on the screen and in MLflow, one line for each event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.search.ledger import Trial
from pipelines.search.space import name_of

_SHOWN, _DESCRIBED = 10, 25
_ORDER = {"finished": 0, "running": 1, "stopped": 2, "failed": 3}


def ranked(trials: Sequence[Trial], metric: str, mode: str) -> list[Trial]:
    """Best first; those that were trained to their end before those that were not, and failed ones last."""

    def place(trial: Trial) -> tuple[int, float, int]:
        value = trial.value(metric)
        if value is None or value != value:
            return _ORDER[trial.status], float("inf"), trial.number
        return _ORDER[trial.status], -value if mode == "max" else value, trial.number

    return sorted(trials, key=place)


def best(trials: Sequence[Trial], metric: str, mode: str) -> Trial | None:
    """The best of those that were trained to their end."""
    first = next(iter(ranked(trials, metric, mode)), None)
    return first if first and first.status == "finished" and first.value(metric) is not None else None


def columns(trials: Sequence[Trial], metric: str) -> list[str]:
    return ["", *dict.fromkeys(key for trial in trials for key in trial.params), metric, "looks", "seconds", "status"]


def rows(trials: Sequence[Trial], metric: str, mode: str, *, most: int = _SHOWN) -> list[list[str]]:
    """The best trials, as many as are shown, and all that are running."""
    order = ranked(trials, metric, mode)
    shown = order[:most] + [trial for trial in order[most:] if trial.status == "running"]
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    return [
        [
            str(trial.number),
            *(number(trial.params.get(key, "")) for key in keys),
            number(trial.value(metric)),
            str(max(trial.looks, default=0)),
            f"{trial.seconds:.1f}" if trial.ended else "",
            trial.status if not trial.cause else f"{trial.status}: {trial.cause[:60]}",
        ]
        for trial in shown
    ]


def event(trial: Trial, metric: str, leader: Trial | None, *, ended: int, total: int) -> str:
    """What is said of a trial that ended."""
    value = trial.value(metric)
    worth = f"  {metric} {value:.4f}" if value is not None else ""
    lead = (
        f"  best {leader.value(metric):.4f} (trial {leader.number})"
        if leader and leader is not trial
        else "  the best so far"
        if leader
        else ""
    )
    why = f": {trial.cause}" if trial.cause else ""
    return f"{ended}/{total}  trial {trial.number} {trial.status}{why}  {name_of(trial.params)}{worth}  {trial.seconds:.1f} s{lead}"


def importances(found: Mapping[str, float]) -> str:
    return "importance so far: " + ", ".join(f"{key} {share:.0%}" for key, share in found.items()) if found else ""


def markdown(title: str, trials: Sequence[Trial], metric: str, mode: str, *, links: Mapping[int, str], notes: Sequence[str]) -> str:
    """The parent run's description: the leaderboard with a link to each trial's run, then notes."""
    head = columns(trials, metric)
    lines = [f"**{title}**", "", f"| trial | {' | '.join(head[1:])} |", "|" + "---|" * len(head)]
    for row in rows(trials, metric, mode, most=_DESCRIBED):
        link = links.get(int(row[0]), "")
        cells = [f"[{row[0]}]({link})" if link else row[0], *row[1:]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes if note)])


def number(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
