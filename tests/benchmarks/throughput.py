"""Steady samples per second of the CNN on MNIST, one worker with two threads, against the loop that people write by hand.

Twice: the worker's own function in the environment that Ray workers get, which is quick to repeat, and the whole `raylway train` with
its Ray worker, which is what a user has. Neither side counts a process's first step.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks import mnist
from tests.benchmarks.processes import WORKER_ENVIRONMENT, run_module
from tests.benchmarks.rows import Row, interleave, ratio_at_least

_UNIT, _BOUND = "samples/s", 1.0


def measure(*, pairs: int = 5, ray_pairs: int = 3) -> list[Row]:
    if not mnist.present("throughput"):
        return []
    with tempfile.TemporaryDirectory() as storage:
        overrides = mnist.overrides(Path(storage))
        run_module("pipelines", "prepare", "cnn", *overrides, "--json")
        worker = interleave(lambda _: _worker(overrides), lambda _: _plain(), pairs=pairs)
        ray = interleave(lambda _: _ray(overrides), lambda _: _plain(), pairs=ray_pairs)
    return [
        ratio_at_least("throughput: the worker's function, plain loop", *worker, unit=_UNIT, bound=_BOUND),
        ratio_at_least("throughput: raylway train on Ray, plain loop", *ray, unit=_UNIT, bound=_BOUND),
    ]


def _worker(overrides: list[str]) -> float:
    return run_module("tests.benchmarks.one_worker", *overrides, environment=WORKER_ENVIRONMENT)["samples_per_second"]


def _ray(overrides: list[str]) -> float:
    return run_module("pipelines", "train", "cnn", *overrides, "--again", "--json")["samples_per_second"]


def _plain() -> float:
    numbers = (mnist.EPOCHS, mnist.BATCH, mnist.THREADS)
    return run_module("tests.benchmarks.plain_loop", str(mnist.IMAGES), *map(str, numbers))["samples_per_second"]
