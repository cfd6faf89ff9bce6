"""The loop: a generator over optimizer steps in plain torch. No Ray, no MLflow, no files, no printing, no callbacks.

A step is a pure function of (weights, optimizer state, step number): its rows, its learning rate and its randomness are computed
from the number. So a checkpoint is those three things, and resuming is calling `train` with another `first`. In pseudo-code:

    for step in first..last:
        for each of my micro-batches: seed torch from (seed, step, micro-batch); add the gradient of the summed loss
        sum gradients, losses and counts over workers; divide the gradient by the count; clip; take the optimizer's step
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.training.parallel import Group
from pipelines.training.sharding import local_part
from workloads.base import Mean

Batch = Mapping[str, Tensor]
StepFunction = Callable[[nn.Module, Batch], dict[str, Mean]]


@dataclass(frozen=True)
class Step:
    """A finished optimizer step. `number` counts finished steps, so it is what a checkpoint taken now would say."""

    number: int
    means: dict[str, Mean]
    lr: float
    data_seconds: float
    pause: bool
    """Whether a worker was asked to pause; all of them see it at the same step."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_function: StepFunction,
    *,
    batches: Callable[[int], Iterable[tuple[int, Batch]]],
    lr: Callable[[int], float],
    group: Group,
    first: int,
    last: int,
    seed: int,
    clip: float | None = None,
    bf16: bool = False,
    idle: int = 0,
    wanted: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Take the steps [first, last), yielding after each. `batches(step)` gives this worker's (micro-batch number, batch) pairs.

    After them it takes `idle` passes that add nothing, so that workers who must go through the network together do (Group.idle).
    `wanted()` says at each step whether this worker is asked to pause.

    The caller decides when to read a number from the device, to evaluate and to save.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(first, last):
        rate = lr(step)
        for settings in optimizer.param_groups:
            settings["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        means: dict[str, Mean] = {}
        data_seconds, asked = 0.0, time.perf_counter()
        for micro_batch, batch in batches(step):
            data_seconds += time.perf_counter() - asked
            torch.manual_seed(mix(seed, step, micro_batch))
            with _precision(group.device, bf16):
                scores = step_function(model, batch)
            scores["loss"].total.backward()
            for name, mean in scores.items():
                mean = Mean(mean.total.detach(), mean.count)
                means[name] = means[name] + mean if name in means else mean
            asked = time.perf_counter()
        for _ in range(idle):
            with _precision(group.device, bf16):
                nothing = 0 * step_function(model, batch)["loss"].total
            nothing.backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, pause = group.sum_step(gradients, means, pause=wanted())
        torch._foreach_div_(gradients, float(means["loss"].count))
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        yield Step(step + 1, means, rate, data_seconds, pause)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    step_function: StepFunction,
    batches: Iterable[Batch],
    *,
    group: Group,
    bf16: bool = False,
    idle: Iterable[Batch] = (),
) -> dict[str, float]:
    """Means over all workers' batches together, each row counted once however many workers there are.

    `idle` batches are gone through and not counted: a worker with fewer batches keeps step with the others by them.
    """
    model.eval()
    means: dict[str, Mean] = {}
    for batch, counts in itertools.chain(zip(batches, itertools.repeat(True)), zip(idle, itertools.repeat(False))):
        with _precision(group.device, bf16):
            scores = step_function(model, batch)
        for name, mean in scores.items():
            mean = mean if counts else Mean(0.0, 0)
            means[name] = means[name] + mean if name in means else mean
    model.train()
    return {name: mean.value for name, mean in group.sum_means(means).items()}


def mix(*numbers: int) -> int:
    """One well-mixed 63-bit seed out of several numbers; the same on every machine, unlike Python's hash()."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def finite(model: nn.Module) -> bool:
    """Whether every weight that this worker holds is a finite number. Reads from the device."""
    return bool(torch.stack([local_part(parameter.detach()).isfinite().all() for parameter in model.parameters()]).all())


def _precision(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
