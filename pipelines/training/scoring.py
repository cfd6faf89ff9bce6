"""Score a network on rows, each counted once however many workers there are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.settings import Run
from pipelines.training import loop
from pipelines.training.delivery import collated, on_device
from pipelines.training.parallel import Group
from workloads.base import Rows


def evaluate(run: Run, group: Group, rows: Rows, model: nn.Module) -> dict[str, float]:
    """Metrics over all workers' rows together."""
    return loop.evaluate(model, run.model.step, _strided(run, group, rows), group=group, bf16=run.train.precision == "bf16")


def score(run: Run, group: Group, rows: Rows, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and what the model says of each row, in the rows' order."""
    return evaluate(run, group, rows, model), said(run, group, rows, model)


@torch.no_grad()
def said(run: Run, group: Group, rows: Rows, model: nn.Module) -> dict[str, np.ndarray]:
    """What the model says of each row, in the rows' order."""
    model.eval()
    mine = [run.model.predict(model, batch) for batch in _strided(run, group, rows)]
    joined = {name: torch.cat([outputs[name] for outputs in mine]) for name in mine[0]}
    return {name: group.gather_strided(part, len(rows)).cpu().numpy() for name, part in joined.items()}


def _strided(run: Run, group: Group, rows: Rows) -> Iterator[dict[str, Tensor]]:
    """This worker's rows (rank, rank + world_size, …) in batches; one empty batch where it has none."""
    mine = np.arange(group.rank, len(rows), group.world_size)
    for start in range(0, max(len(mine), 1), run.micro_batch):
        yield on_device(collated(run.model, rows.take(mine[start : start + run.micro_batch])), group.device)
