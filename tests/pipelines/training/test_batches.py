"""Batches that are made ahead are the batches that would have been made in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.data import preparation
from pipelines.data.order import Order, micro_batches
from pipelines.run_settings import Run
from pipelines.training import batches as delivery
from pipelines.training.batches import delivered, ordered, streamed
from tests import runs
from workloads.base import Arrays, DataError

CPU = torch.device("cpu")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("delivery")]


# ---- the batches of the loop


@pytest.fixture(scope="module")
def run(storage: Path) -> Run:
    return runs.load(storage, "train.batch=48", "train.micro_batch=20", "train.steps=12")


@pytest.fixture(scope="module")
def text(storage: Path) -> Run:
    return runs.load(storage, "train.batch=48", "train.micro_batch=20", "train.steps=12", recipe="lstm_text")


def same(ours: Sequence[tuple[int, dict[str, Tensor]]], theirs: Sequence[tuple[int, dict[str, Tensor]]]) -> None:
    assert [number for number, _ in ours] == [number for number, _ in theirs]
    for (_, mine), (_, other) in zip(ours, theirs, strict=True):
        assert set(mine) == set(other)
        assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("recipe", ["run", "text"])
@pytest.mark.parametrize("first", [0, 7])
def test_the_loop_gets_what_it_would_get_by_asking(request: pytest.FixtureRequest, recipe: str, first: int) -> None:
    run: Run = request.getfixturevalue(recipe)
    rows = preparation.prepare(run, preparation.plan(run), preparation.in_process).train
    of_step = ordered(run, rows, micro_batches(48, 20, rank=0, world_size=1))
    with delivered(range(first, 12), of_step, CPU) as batches:
        for step in range(first, 12):
            same(list(batches(step)), list(of_step(step)))


@pytest.mark.parametrize("recipe", ["run", "text"])
def test_rows_of_a_step_are_those_of_its_number(request: pytest.FixtureRequest, recipe: str) -> None:
    run: Run = request.getfixturevalue(recipe)
    rows = preparation.prepare(run, preparation.plan(run), preparation.in_process).train
    order = Order(len(rows), 48, run.train.seed, (lambda index: rows.take(index)["length"]) if recipe == "text" else None)
    for workers in (1, 2):
        shares = [micro_batches(48, 20, rank=rank, world_size=workers) for rank in range(workers)]
        found = [batch for share in shares for batch in ordered(run, rows, share)(5)]
        assert [number for number, _ in found] == [0, 1, 2]
        labels = torch.cat([batch["label"] for _, batch in found])
        assert labels.tolist() == rows.take(order.of_step(5))["label"].tolist()


def test_what_is_wrong_with_a_batch_is_raised_at_its_step() -> None:
    def of_step(step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        yield 0, {"x": torch.tensor(step)}
        if step == 3:
            raise DataError("the disk is gone")

    with delivered(range(10), of_step, CPU) as batches:
        assert [int(batch["x"]) for step in range(3) for _, batch in batches(step)] == [0, 1, 2]
        with pytest.raises(DataError, match="the disk is gone"):
            list(batches(3))
    assert not threads()


def test_without_a_gpu_a_batch_stays_as_it_is() -> None:
    batch = {"x": torch.arange(3)}
    assert delivery.pinned(batch, CPU) is batch
    assert delivery.on_device(batch, CPU)["x"] is batch["x"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_pinned_and_then_copied() -> None:
    batch = {"x": torch.arange(1000)}
    pinned = delivery.pinned(batch, torch.device("cuda"))
    assert pinned["x"].is_pinned()
    with delivered(range(3), lambda step: iter([(0, {"x": batch["x"] + step})]), torch.device("cuda")) as batches:
        for step in range(3):
            ((_, there),) = batches(step)
            assert there["x"].is_cuda
            assert torch.equal(there["x"].cpu(), batch["x"] + step)


# ---- streams


def numbered(epochs: dict[int, int], asked: list[tuple[int, int]]):
    """A stream of so many batches in each epoch; a row is epoch * 1000 + its number."""

    def stream(rows: int, seed: int) -> Iterator[Arrays]:
        asked.append((rows, seed))
        for batch in range(epochs.get(seed, 2)):
            yield {"image": seed * 1000 + np.arange(batch * rows, (batch + 1) * rows), "label": np.full(rows, seed)}

    return stream


def test_what_arrives_is_cut_into_the_micro_batches_epoch_after_epoch(run: Run) -> None:
    asked: list[tuple[int, int]] = []
    share = [(2, slice(8, 12)), (3, slice(12, 15))]
    of_step = streamed(run.model, numbered({5: 3, 6: 1}, asked), share, seed=5)
    seen = [[(number, batch["image"].tolist()) for number, batch in of_step(step)] for step in range(6)]
    for epoch, batch, step in [(5, 0, 0), (5, 1, 1), (5, 2, 2), (6, 0, 3), (7, 0, 4), (7, 1, 5)]:
        rows = [epoch * 1000 + batch * 7 + row for row in range(7)]
        assert seen[step] == [(2, rows[:4]), (3, rows[4:])]
    assert asked == [(7, 5), (7, 6), (7, 7)]


def test_a_streamed_batch_may_be_written_to(run: Run) -> None:
    held = np.arange(8)
    held.flags.writeable = False
    of_step = streamed(run.model, lambda rows, seed: iter([{"image": held}]), [(0, slice(0, 8))], seed=0)
    ((_, batch),) = of_step(0)
    batch["image"] += 1
    assert held.tolist() == list(range(8))


def test_streamed_texts_are_cut_to_the_longest_of_their_micro_batch(text: Run) -> None:
    tokens = np.tile(np.arange(40), (4, 1))
    stream = {"tokens": tokens, "length": np.array([2, 3, 30, 4]), "label": np.zeros(4, int)}
    of_step = streamed(text.model, lambda rows, seed: iter([stream]), [(0, slice(0, 2)), (1, slice(2, 4))], seed=0)
    short, long = (batch["tokens"] for _, batch in of_step(0))
    assert 3 <= short.shape[1] < 30 <= long.shape[1] < 40


def test_a_stream_without_a_batch_is_refused(run: Run) -> None:
    of_step = streamed(run.model, numbered({0: 0}, []), [(0, slice(0, 20)), (1, slice(20, 48))], seed=0)
    with pytest.raises(DataError, match=r"fewer rows than the 48 that a worker takes in a step; lower train\.batch"):
        list(of_step(0))


def test_a_stream_that_dries_up_is_refused_too(run: Run) -> None:
    of_step = streamed(run.model, numbered({0: 1, 1: 0}, []), [(0, slice(0, 4))], seed=0)
    assert len(list(of_step(0))) == 1
    with pytest.raises(DataError, match="fewer rows"):
        list(of_step(1))
