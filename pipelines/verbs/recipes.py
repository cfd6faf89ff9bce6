"""Recipes: what can be trained, one line each, and about how long it takes on this machine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipelines import config
from pipelines.screen import Screen

_REFERENCE_SECONDS = 0.0088  # what `_work` took where the recipes' `about.seconds` were measured: 2 cores of an AMD EPYC


def recipes(screen: Screen) -> dict[str, Any]:
    """Every recipe with its task, network, trainable parameters, data and seconds, as JSON."""
    slower = _work() / _REFERENCE_SECONDS
    rows = []
    for name in config.recipes():
        loaded = config.load(name)
        run, about = loaded.run, loaded.about
        seconds = round(about["seconds"] * slower) if "seconds" in about else None
        rows.append(
            {
                "recipe": name,
                "task": run.model.task,
                "workload": run.workload,
                "parameters": about.get("parameters"),
                "data": run.data.name,
                "seconds": seconds,
            }
        )
    shown = [[*(row[key] for key in ("recipe", "task", "workload", "data")), *_numbers(row)] for row in rows]
    screen.table("", ["recipe", "task", "network", "data", "parameters", "takes about"], shown)
    return {"recipes": rows}


def _numbers(row: dict[str, Any]) -> tuple[str, str]:
    parameters, seconds = row["parameters"], row["seconds"]
    return f"{parameters:,}" if parameters else "", f"{max(5, 5 * round(seconds / 5))} s" if seconds else ""


def _work() -> float:
    """Seconds for a fixed piece of arithmetic on one core, the least of a few: how fast this machine is."""
    numbers = np.linspace(0, 1, 500_000)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        np.exp(np.sin(numbers)).sum()  # one thread: several wait for each other when the machine is busy
        seconds.append(time.perf_counter() - began)
    return min(seconds)
