"""Seconds from a process's first line to the first training step, against the least that a Ray Train run takes to begin.

Cold makes the storage: it prepares the data and MLflow's database. Warm is the next run there, another one by its learning rate. Ours
counts the first step itself; the reference ends where its function, which does nothing, is entered.
"""

from __future__ import annotations

import tempfile

from tests.benchmarks.processes import run_module
from tests.benchmarks.rows import Row, ratio_at_most
from tests.benchmarks.shared_data import MNIST, present


def measure(*, rounds: int = 3) -> list[Row]:
    floor, cold, warm, plain = [], [], [], []
    images = present("startup of the plain loop", MNIST)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as storage:
            floor.append(_floor(storage))
            cold.append(_ours(storage, lr=0.001))
            warm.append(_ours(storage, lr=0.002))
        if images:
            plain.append(_plain())
    rows = [
        ratio_at_most("startup: warm, Ray Train alone", warm, floor, unit="s", bound=1.3),
        ratio_at_most("startup: cold, Ray Train alone", cold, floor, unit="s", bound=None),
    ]
    if plain:
        rows.append(ratio_at_most("startup: warm, plain torch script (for scale)", warm, plain, unit="s", bound=None))
    return rows


def _floor(storage: str) -> float:
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    return run_module("tests.benchmarks.ray_floor", f"{storage}/floor", environment=environment)["first_line_seconds"]


def _ours(storage: str, *, lr: float) -> float:
    result = run_module("pipelines", "train", "cnn", "train.steps=20", f"optim.lr={lr}", f"storage={storage}/runs", "--json")
    return result["seconds"]["startup"]


def _plain() -> float:
    return run_module("tests.benchmarks.plain_loop", str(MNIST), "1", "128", "2")["first_step_seconds"]
