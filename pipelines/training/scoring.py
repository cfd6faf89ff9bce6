"""Score a network on rows, each counted once however many workers there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from pipelines.run_settings import Run
from pipelines.training import loop
from pipelines.training.batches import Batch, collated, on_device
from pipelines.training.parallel import Group
from workloads.base import Rows


def evaluate(run: Run, group: Group, rows: Rows, model: nn.Module) -> dict[str, float]:
    """Metrics over all workers' rows together."""
    batches, idle = _strided(run, group, rows)
    return loop.evaluate(model, run.model.step, batches, group=group, bf16=run.train.precision == "bf16", idle=idle)


def score(run: Run, group: Group, rows: Rows, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and what the model says of each row, in the rows' order."""
    return evaluate(run, group, rows, model), said(run, group, rows, model)


@torch.no_grad()
def said(run: Run, group: Group, rows: Rows, model: nn.Module) -> dict[str, np.ndarray]:
    """What the model says of each row, in the rows' order."""
    model.eval()
    batches, idle = _strided(run, group, rows)
    mine = [run.model.predict(model, batch) for batch in batches]
    mine += [{name: output[:0] for name, output in run.model.predict(model, batch).items()} for batch in idle]
    joined = {name: torch.cat([outputs[name] for outputs in mine]) for name in mine[0]}
    return {name: group.gather_strided(part, len(rows)).cpu().numpy() for name, part in joined.items()}


def _strided(run: Run, group: Group, rows: Rows) -> tuple[Iterator[Batch], Iterator[Batch]]:
    """This worker's rows (rank, rank + world_size, …) in batches, and batches of one row that bring it to as many as the first worker's.

    Those are not for counting, and not empty: some networks cannot take no rows (BERT of transformers 5.23).
    """
    mine, size = np.arange(group.rank, len(rows), group.world_size), run.micro_batch
    own = [mine[start : start + size] for start in range(0, len(mine), size)]
    most = -(-len(range(0, len(rows), group.world_size)) // size)
    idle = [np.zeros(1, np.int64)] * (most - len(own))

    def batches(parts: list[np.ndarray]) -> Iterator[Batch]:
        return (on_device(collated(run.model, rows.take(part)), group.device) for part in parts)

    return batches(own), batches(idle)
