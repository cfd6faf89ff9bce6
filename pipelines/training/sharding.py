"""Fully sharded workers (`scale.strategy=fsdp`): each holds its rows of every weight, gradient and optimizer state, and no more.

By torch's FSDP2 (`fully_shard`), put around a network from outside: no workload knows of it. A block's weights are gathered before it
computes and let go behind it, so all workers must go through the network equally often, and none can do so alone. Arithmetic is that of
whole weights: sums, not means, of gradients travel, and bf16 is autocast's as elsewhere. FSDP2's own bf16 would halve what is sent, but
it casts inputs, norms and embeddings too, and the curve would depend on the strategy.

What is stored is whole, so a run can go on with another number of workers, or without this. Shards are cut as by `torch.chunk`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from pipelines.training.parallel import Group
from workloads.base import Mean

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Sharded(Group):
    """Workers who hold a part each; to `Group` for everyone's use."""

    @property
    def sharded(self) -> bool:
        return True

    def place(self, model: nn.Module) -> nn.Module:
        """Cut each weight, in place. On the device there is never more of them whole than one block's."""
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for part in [*blocks(model), model]:
            # torch keeps the root's weights whole behind a forward pass, also when no backward pass follows, as in an evaluation; then
            # `model.parameters()` are other tensors than the optimizer's
            cut = fully_shard(part, mesh=mesh, reshard_after_forward=True)
            assert isinstance(cut, FSDPModule)
            cut.set_gradient_divide_factor(1.0)
            cut.set_force_sum_reduction_for_comms(True)  # else it is a product with 1.0 by an operation that gloo does not have
        return model

    def compiled(self, model: nn.Module) -> nn.Module:
        # only inside of what is gathered: where torch.compile meets the gathering itself it compiles nothing (torch 2.13)
        for module in blocks(model):
            module.forward = torch.compile(module.forward)
        return model

    def sum_step(self, gradients: Sequence[Tensor], means: dict[str, Mean], *, pause: bool = False) -> tuple[dict[str, Mean], bool]:
        """Gradients were summed in the backward pass, each worker keeping its part."""
        return super().sum_step([gradient for gradient in gradients if not isinstance(gradient, DTensor)], means, pause=pause)

    def idle(self, own: int, all_workers: int) -> int:
        return -(-all_workers // self.world_size) - own

    def all_of(self, flag: bool) -> bool:
        agreed = torch.tensor([int(flag)], dtype=torch.int64, device=self.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return bool(agreed)


def group_of(strategy: Literal["ddp", "fsdp"], rank: int, world_size: int, device: torch.device) -> Group:
    """The workers of a run; one alone has nobody to share with."""
    return (Sharded if strategy == "fsdp" and world_size > 1 else Group)(rank, world_size, device)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts gathered one at a time: the members of a network's lists and sequences; whatever is in none is gathered with the root.

    A part some of whose weights are another's too (tied ones) is left to the root: FSDP2 can cut a weight once.
    """
    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))

    def is_whole(part: nn.Module) -> bool:
        own = Counter(id(weight) for module in part.modules() for weight in module.parameters(recurse=False))
        return bool(own) and all(owners[weight] == count for weight, count in own.items())

    return [part for part in _members(model) if is_whole(part)]


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this worker holds, which is all of it where nothing is shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on each worker; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(weight: Tensor | None, shape: Sequence[int], read: Callable[[slice | None], Any]) -> Tensor:
    """A stored tensor of `shape`, held as `weight` is: `read(rows)` gives these rows of it, `read(None)` all."""
    if not isinstance(weight, DTensor) or list(shape) != list(weight.shape):
        return read(None)
    mesh, held = weight.device_mesh, local_part(weight)
    start = mesh.get_local_rank() * -(-shape[0] // mesh.size())
    part = read(slice(start, start + len(held))).to(held.device) if len(held) else torch.empty_like(held)
    return DTensor.from_local(part, mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride())


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, _LISTS) and not isinstance(child, _LISTS):
            yield child
        else:
            yield from _members(child)
