"""Rows per second delivered in shuffled batches from the memory-mapped dataset, against numpy indexing arrays in memory.

Ours computes the order of each epoch as training does; numpy is given the same order ready-made.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from pipelines import prepare
from pipelines.config import load
from pipelines.data.order import Order
from pipelines.data.prepared import Dataset, MappedRows
from tests.benchmarks.rows import Row, interleave, ratio_at_least
from tests.benchmarks.shared_data import MNIST, present

_BATCH = 128
_EPOCHS = 20  # a round: long enough to time, and more epochs than Order remembers


def measure(*, pairs: int = 15) -> list[Row]:
    if not present("delivery", MNIST):
        return []
    with tempfile.TemporaryDirectory() as storage:
        rows = _prepared(Path(storage)).train
        order = Order(len(rows), _BATCH, seed=0)
        arrays = rows.take(np.arange(len(rows)))
        images, labels = arrays["image"], arrays["label"]
        rates = interleave(
            lambda number: _mapped(rows, order, _steps(number, order)),
            lambda number: _in_memory(images, labels, order, _steps(number, order)),
            pairs=pairs,
        )
    return [ratio_at_least("delivery: prepared dataset, numpy in memory", *rates, unit="rows/s", bound=0.8)]


def _prepared(storage: Path) -> Dataset:
    run = load("cnn", [f"data.source={MNIST}", f"storage={storage}", f"train.batch={_BATCH}"]).run
    return prepare.prepare(run, prepare.plan(run), prepare.in_process)


def _steps(number: int, order: Order) -> range:
    """The steps of one round; no two rounds share an epoch, so none finds its permutation computed."""
    count = _EPOCHS * order.rows // order.batch
    return range(number * count, (number + 1) * count)


def _mapped(rows: MappedRows, order: Order, steps: range) -> float:
    began = time.perf_counter()
    for step in steps:
        rows.take(order.of_step(step))
    return len(steps) * order.batch / (time.perf_counter() - began)


def _in_memory(images: np.ndarray, labels: np.ndarray, order: Order, steps: range) -> float:
    shuffled = np.concatenate([order.of_step(step) for step in steps])
    began = time.perf_counter()
    for start in range(0, len(shuffled), order.batch):
        index = shuffled[start : start + order.batch]
        images[index], labels[index]
    return len(shuffled) / (time.perf_counter() - began)
