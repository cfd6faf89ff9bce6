"""Sums over workers: one all-reduce a step carries the gradients, the losses, the counts and a request to pause together.

Not torch's DistributedDataParallel: it rebuilds its buckets after the first step, so a resumed run adds in another order than an
undisturbed one and the bits differ from three workers on (torch 2.13). One flat sum has the same order always, and what it gives
up, the overlap with the backward pass, costs nothing measurable on the networks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workloads.base import Mean


@dataclass(frozen=True)
class Group:
    """The workers of a run and this one's place among them. With one worker nothing is sent.

    Here each holds the whole network (`scale.strategy=ddp`); `sharding.Sharded` is where each holds a part.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def sharded(self) -> bool:
        """True if all workers must call the network equally often."""
        return False

    def place(self, model: nn.Module) -> nn.Module:
        """A fresh network where this worker computes with it."""
        return model.to(self.device)

    def compiled(self, model: nn.Module) -> nn.Module:
        """The network, compiled by torch.compile when it is first gone through."""
        return cast(nn.Module, torch.compile(model))

    def idle(self, own: int, all_workers: int) -> int:
        """Passes through the network that this worker must take for nothing, with `own` of `all_workers` micro-batches."""
        return 0

    def all_of(self, flag: bool) -> bool:
        """True if `flag` is true on all workers; where each holds the same weights, the own flag is the answer."""
        return flag

    def sum_step(self, gradients: Sequence[Tensor], means: dict[str, Mean], *, pause: bool = False) -> tuple[dict[str, Mean], bool]:
        """Sum `gradients` in place and `means` as returned, over all workers; and whether any of them wants to `pause`."""
        if self.world_size == 1:
            return means, pause
        wanted = torch.tensor([pause], dtype=torch.float32, device=self.device)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), self._pack(means).to(torch.float32), wanted])
        dist.all_reduce(flat)
        *parts, packed, wanted = flat.split([*(gradient.numel() for gradient in gradients), 2 * len(means), 1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return _unpack(means, packed), bool(wanted)

    def sum_means(self, means: dict[str, Mean]) -> dict[str, Mean]:
        """Sum `means` over all workers, in double precision: counts of rows stay exact."""
        packed = self._pack(means)
        if self.world_size > 1:
            dist.all_reduce(packed)
        return _unpack(means, packed)

    def from_first(self, number: int) -> int:
        """The first worker's `number`, on every worker."""
        first = torch.tensor([number], dtype=torch.int64, device=self.device)
        if self.world_size > 1:
            dist.broadcast(first, src=0)
        return int(first)

    def gather_strided(self, part: Tensor, rows: int) -> Tensor:
        """All `rows` rows in order, where this worker has rows rank, rank + world_size, rank + 2 world_size, …"""
        if self.world_size == 1:
            return part
        longest = -(-rows // self.world_size)
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:rows]

    def _pack(self, means: dict[str, Mean]) -> Tensor:
        numbers = [number for name in sorted(means) for number in (means[name].total, means[name].count)]
        return torch.stack([torch.as_tensor(number, device=self.device).detach().to(torch.float64) for number in numbers])


def _unpack(means: dict[str, Mean], packed: Tensor) -> dict[str, Mean]:
    return {name: Mean(packed[2 * place], packed[2 * place + 1]) for place, name in enumerate(sorted(means))}
