"""Rows per second delivered in shuffled batches from memory-mapped datasets, against numpy indexing arrays in memory.

200,000 images of 28x28 bytes, and as many rows of 64 tokens, each with a label. Ours computes the order of each epoch as training does;
numpy is given the same order ready-made.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from pipelines.data.dataset import MappedRows, parts
from pipelines.data.order import Order
from tests.benchmarks.rows import Row, interleave, ratio_at_least

_ROWS, _BATCH = 200_000, 128
_EPOCHS = 2  # a round


def measure(*, pairs: int = 9) -> list[Row]:
    rng = np.random.default_rng(0)
    kinds = {
        "images": {"image": rng.integers(0, 256, (_ROWS, 1, 28, 28), dtype=np.uint8)},
        "64 tokens": {"tokens": rng.integers(0, 20_000, (_ROWS, 64), dtype=np.int32)},
    }
    found = []
    for name, columns in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            rows = _stored(Path(folder), columns | {"label": np.arange(_ROWS) % 10})
            rates = _compared(rows, pairs)
        found.append(ratio_at_least(f"delivery of {name}: prepared, numpy in memory", *rates, unit="rows/s", bound=0.85))
    return found


def _stored(folder: Path, columns: dict[str, np.ndarray]) -> MappedRows:
    """Rows as a prepared dataset holds them."""
    with parts(folder) as add:
        add("rows", columns)
    return MappedRows([folder / "rows"])


def _compared(rows: MappedRows, pairs: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    order = Order(len(rows), _BATCH, seed=0)
    arrays = list(rows.take(np.arange(len(rows))).values())
    return interleave(
        lambda number: _mapped(rows, order, _steps(number, order)),
        lambda number: _in_memory(arrays, order, _steps(number, order)),
        pairs=pairs,
    )


def _steps(number: int, order: Order) -> range:
    """The steps of one round; no two rounds share an epoch, so none finds its permutation computed."""
    count = _EPOCHS * order.rows // order.batch
    return range(number * count, (number + 1) * count)


def _mapped(rows: MappedRows, order: Order, steps: range) -> float:
    began = time.perf_counter()
    for step in steps:
        rows.take(order.of_step(step))
    return len(steps) * order.batch / (time.perf_counter() - began)


def _in_memory(arrays: list[np.ndarray], order: Order, steps: range) -> float:
    shuffled = np.concatenate([order.of_step(step) for step in steps])
    began = time.perf_counter()
    for start in range(0, len(shuffled), order.batch):
        index = shuffled[start : start + order.batch]
        for array in arrays:
            array[index]
    return len(shuffled) / (time.perf_counter() - began)
