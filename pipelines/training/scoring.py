"""Score a network on rows, each counted once however many workers there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch import nn

from pipelines.run_settings import Run
from pipelines.training import loop
from pipelines.training.batches import Batch
from pipelines.training.parallel import Group
from workloads import inference
from workloads.base import Rows
from workloads.judging import Judging


def validate(run: Run, group: Group, rows: Rows, model: nn.Module, judging: Judging) -> dict[str, float]:
    """Metrics over the rows of all workers."""
    batches, idle = _strided(run, group, rows)
    means = loop.evaluate(model, run.model.step, batches, group=group, bf16=run.train.precision == "bf16", idle=idle)
    return judging.from_means(means)


def score(run: Run, group: Group, rows: Rows, model: nn.Module, judging: Judging) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and predictions of all rows."""
    return validate(run, group, rows, model, judging), predictions(run, group, rows, model)


def predictions(run: Run, group: Group, rows: Rows, model: nn.Module) -> dict[str, np.ndarray]:
    """Predictions for all rows, gathered from all workers, in row order."""
    batches, idle = _strided(run, group, rows)
    own = len(range(group.rank, len(rows), group.world_size))
    outputs = inference.forward(run.model.predict, model, itertools.chain(batches, idle))
    return {name: group.gather_strided(output[:own], len(rows)).cpu().numpy() for name, output in outputs.items()}


def _strided(run: Run, group: Group, rows: Rows) -> tuple[Iterator[Batch], Iterator[Batch]]:
    """Batches of this worker's rows (rank, rank + world_size, …), and idle batches that bring it to as many as the first worker has.

    Idle batches have one row, which does not count: some networks cannot take no rows (BERT of transformers 5.23).
    """
    own, size = np.arange(group.rank, len(rows), group.world_size), run.micro_batch
    parts = [own[start : start + size] for start in range(0, len(own), size)]
    most = -(-len(range(0, len(rows), group.world_size)) // size)
    idle = [np.zeros(1, np.int64)] * (most - len(parts))

    def batches(parts: list[np.ndarray]) -> Iterator[Batch]:
        return (inference.tensors(run.model, rows.take(part), group.device) for part in parts)

    return batches(parts), batches(idle)
