"""The batches of a step or an evaluation: rows by the order, as a stream brings them, or divided among workers in turn.

For a GPU those of a step are gathered and pinned by a thread while it computes. Rows are assigned to steps by number, so a batch gathered
ahead is the batch that would have been gathered in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pipelines.data.order import Order
from pipelines.data.prefetch import ahead
from pipelines.run_settings import Run
from pipelines.training.parallel import Group
from workloads.base import Arrays, DataError, Rows, Workload
from workloads.inference import tensors

Batch = dict[str, Tensor]
Share = Sequence[tuple[int, slice]]
"""This worker's micro-batches: number in the global batch, rows of it (order.micro_batches)."""
Stream = Callable[[int, int], Iterator[Arrays]]
"""`stream(rows, seed)`: one epoch of training rows in batches of `rows`, in no promised order."""
OfStep = Callable[[int], Iterator[tuple[int, Batch]]]
"""A step's micro-batches: (number, batch)."""


def ordered(run: Run, examples: Rows, share: Share) -> OfStep:
    """Rows by the order that makes a step a function of its number."""
    column = run.model.length_column
    lengths = (lambda index: examples.take(index, [column])[column]) if column else None
    order = Order(len(examples), run.train.batch, run.train.seed, lengths)

    def of_step(step: int) -> Iterator[tuple[int, Batch]]:
        index = order.of_step(step)
        for number, rows in share:
            yield number, tensors(run.model, examples.take(index[rows]))

    return of_step


def streamed(workload: Workload, stream: Stream, share: Share, seed: int) -> OfStep:
    """Rows as they come, epoch after epoch; a step's number says nothing about which they are."""
    sizes = [rows.stop - rows.start for _, rows in share]
    edges = np.cumsum([0, *sizes]).tolist()

    def arriving() -> Iterator[Arrays]:
        for epoch in itertools.count(seed):
            arrived = 0
            for arrays in stream(edges[-1], epoch):
                arrived += 1
                yield arrays
            if not arrived:
                raise DataError(f"the stream has fewer rows than the {edges[-1]:,} that a worker takes in a step; lower train.batch")

    rows = arriving()

    def of_step(step: int) -> Iterator[tuple[int, Batch]]:
        arrays = next(rows)
        for (number, _), start, stop in zip(share, edges, edges[1:], strict=False):
            yield number, tensors(workload, {name: column[start:stop].copy() for name, column in arrays.items()})

    return of_step


def strided(run: Run, group: Group, rows: Rows) -> tuple[Iterator[Batch], Iterator[Batch]]:
    """Batches of this worker's rows (rank, rank + world_size, …), and idle batches that bring it to as many as the first worker has.

    Idle batches have one row, which does not count: some networks cannot take no rows (BERT of transformers 5.23).
    """
    own, size = np.arange(group.rank, len(rows), group.world_size), run.micro_batch
    parts = [own[start : start + size] for start in range(0, len(own), size)]
    most = -(-len(range(0, len(rows), group.world_size)) // size)
    idle = [np.zeros(1, np.int64)] * (most - len(parts))

    def batches(parts: list[np.ndarray]) -> Iterator[Batch]:
        return (tensors(run.model, rows.take(part), group.device) for part in parts)

    return batches(parts), batches(idle)


@contextmanager
def delivered(steps: range, of_step: OfStep, device: torch.device) -> Iterator[OfStep]:
    """`of_step` as a function for the loop, which asks for the steps in order: each one's micro-batches, on the device."""

    def gathered() -> Iterator[list[tuple[int, Batch]]]:
        if device.type == "cuda":  # each thread has a current GPU of its own, at first GPU 0, on which pinning would take memory
            torch.cuda.set_device(device)
        for step in steps:
            yield [(number, pinned(batch, device)) for number, batch in of_step(step)]

    with ahead(gathered()) as ready:
        yield lambda step: ((number, on_device(batch, device)) for number, batch in next(ready))


def pinned(batch: Batch, device: torch.device) -> Batch:
    """In memory from which a GPU copies by itself; on other devices as it is."""
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if device.type == "cuda" else batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
