"""Batch inference: from encoded examples to a network's outputs, for test scores, evaluate, predict and serving alike.

How examples are divided into batches is the caller's: by the micro-batch of a training, by the bytes of a row, or by a fixed number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Arrays, Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    Forward = Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]
    """`Workload.predict` or `Serving.respond`."""


def tensors(workload: Workload, examples: dict[str, np.ndarray], device: Any = "cpu") -> dict[str, Tensor]:
    """Collate a batch of examples and move it to the device. A read-only column is copied: torch warns of one."""
    import torch

    batch = workload.collate(examples)
    return {
        name: torch.from_numpy(np.require(column, requirements=["C", "W"])).to(device, non_blocking=True) for name, column in batch.items()
    }


def forward(call: Forward, network: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Outputs of the network for all batches, in their order, on its device and without gradients.

    Not in torch's inference mode: weights that FSDP gathers there could not be trained any further (torch 2.13).
    """
    import torch

    network.eval()
    with torch.no_grad():
        parts = [call(network, batch) for batch in batches]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def outputs(workload: Workload, call: Forward, network: nn.Module, examples: Arrays, *, batch_rows: int) -> dict[str, np.ndarray]:
    """Outputs for all examples, in their order. Examples of about one length share a batch, so that little of it is padding."""
    count = len(next(iter(examples.values())))
    lengths = examples.get(workload.length_column or "")
    order = None if lengths is None else np.argsort(lengths, kind="stable")
    device = next((parameter.device for parameter in network.parameters()), "cpu")

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in range(0, max(count, 1), batch_rows):
            rows = slice(start, start + batch_rows) if order is None else order[start : start + batch_rows]
            yield tensors(workload, {name: column[rows] for name, column in examples.items()}, device)

    found = {name: output.cpu().numpy() for name, output in forward(call, network, batches()).items()}
    return found if order is None else {name: column[np.argsort(order)] for name, column in found.items()}
