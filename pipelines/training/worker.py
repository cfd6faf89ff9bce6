"""What each worker does, from an empty process to test scores: the same code in this process, under Ray, and after a crash.

`training` is a generator that gives what it saw of the validation rows each time it looked. Whoever goes through it decides: `work` to its
end, and then the test rows; a sweep's trial may stop at any look, and never sees a test row.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn

from pipelines import elastic, process
from pipelines.data import dataset
from pipelines.data.dataset import Dataset
from pipelines.data.order import micro_batches
from pipelines.elastic import Paused
from pipelines.errors import Diverged, WorkerFailed, describe
from pipelines.run_settings import Run
from pipelines.tracking.journal import Journal
from pipelines.training import checkpoint, loop
from pipelines.training.batches import Batch, Stream, delivered, ordered, streamed
from pipelines.training.hardware import hardware, settle
from pipelines.training.job import Job
from pipelines.training.optim import learning_rate, make_optimizer
from pipelines.training.parallel import Group
from pipelines.training.scoring import score, validate
from pipelines.training.sharding import group_of
from pipelines.training.timing import Timing
from workloads.base import DataError, Encoding, Rows
from workloads.judging import Judging

R = TypeVar("R")
_WRITER_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What the first worker reports when training is done."""

    steps: int
    resumed_from_step: int
    refused_checkpoints: list[str]
    checkpoint: str
    weights_sha256: str
    workers: int
    threads: int
    hardware: str
    metrics: dict[str, float]
    outputs: dict[str, np.ndarray] = field(repr=False)
    samples_per_second: float | None
    began: float
    first_step: float
    trained: float
    evaluated: float


@dataclass(frozen=True)
class Look:
    """What the validation rows said after `step` finished steps; `number` counts the looks of a run from 1."""

    number: int
    step: int
    scores: dict[str, float]
    last: bool
    group: Group


@dataclass(frozen=True)
class Trained:
    """What a worker holds when training is done, or `paused` after so many `steps`."""

    model: nn.Module
    data: Dataset
    encoding: Encoding
    group: Group
    steps: int
    paused: bool
    resumed_from_step: int
    refused_checkpoints: list[str]
    checkpoint: str
    samples_per_second: float | None
    began: float
    first_step: float


def work(
    job: Job, *, rank: int, world_size: int, device: str, stream: Stream | None = None, asked: Callable[[], bool] = elastic.never
) -> Outcome | Paused:
    """Train from the newest trusted checkpoint (or from nothing) to the last step, then score the test rows.

    With `stream` the training rows are what it gives, in any order; else they are the prepared ones, in the order of their steps.
    Where `asked` says so, training pauses.
    """
    trained = to_the_end(training(job, rank=rank, world_size=world_size, device=device, stream=stream, asked=asked))
    if trained.paused:
        return Paused(trained.steps)
    ended = time.time()
    workload = job.run.model
    test, judging = workload.examples(trained.data.test, training=False), workload.judging(trained.encoding)
    metrics, outputs = score(job.run, trained.group, test, trained.model, judging)
    return Outcome(
        steps=trained.steps,
        resumed_from_step=trained.resumed_from_step,
        refused_checkpoints=trained.refused_checkpoints,
        checkpoint=trained.checkpoint,
        weights_sha256=checkpoint.weights_sha256(trained.model),
        workers=world_size,
        threads=torch.get_num_threads(),
        hardware=hardware(trained.group.device),
        metrics={f"test/{name}": value for name, value in metrics.items()},
        outputs=outputs,
        samples_per_second=trained.samples_per_second,
        began=trained.began,
        first_step=trained.first_step,
        trained=ended,
        evaluated=time.time(),
    )


def training(
    job: Job, *, rank: int, world_size: int, device: str, stream: Stream | None = None, asked: Callable[[], bool] = elastic.never
) -> Generator[Look, None, Trained]:
    """Train to the last step, giving each look at the validation rows after it is journalled. To close it is to stop there.

    Where any worker's `asked` says so, all pause after the same step, and its checkpoint stands.
    """
    began = time.time()
    torch.set_num_threads(job.threads)
    run, workload = job.run, job.run.model
    group = group_of(run.scale.strategy, rank, world_size, settle(torch.device(device)))
    data = _wait_for(job)
    encoding = workload.encoding_type.model_validate(data.manifest.encoding)
    examples, validation = workload.examples(data.train, training=True), workload.examples(data.validation, training=False)
    there = data.manifest.summary.splits["train"] if stream else len(examples)
    steps, until = run.steps(there), job.steps(there)
    with ExitStack() as stack:
        journal = None
        if rank == 0:
            stack.enter_context(job.folder.locked("writer", wait_seconds=_WRITER_WAIT_SECONDS))
            journal = Journal(job.folder.journal)
            stack.callback(journal.close)
        path, refused = checkpoint.newest(job.folder.checkpoints, job.identity) if rank == 0 else (None, [])
        start = group.from_first(-1 if path is None else checkpoint.verify(path).step)
        process.collect_as_usual()
        model, optimizer = _made(run, encoding, group, None if start < 0 else checkpoint.path_of(job.folder.checkpoints, start))
        start = max(start, 0)
        look = functools.partial(_look, job, group, validation, encoding, journal, model)
        share = micro_batches(run.train.batch, run.micro_batch, rank=rank, world_size=world_size)
        of_step = streamed(run.model, stream, share, run.train.seed + start) if stream else ordered(run, examples, share)
        # on a CPU a batch is gathered in microseconds, and a thread that does it takes more than that from the network
        ahead = group.device.type == "cuda"
        batches = stack.enter_context(delivered(range(start, until), of_step, group.device)) if ahead else of_step
        timing, reached = yield from _train(
            job,
            group,
            batches,
            model,
            optimizer,
            journal,
            look,
            asked,
            workload.judging(encoding),
            first=start,
            until=until,
            last=steps,
            epoch=run.steps_per_epoch(there),
            idle=group.idle(len(share), -(-run.train.batch // run.micro_batch)),
        )
    return Trained(
        model=model,
        data=data,
        encoding=encoding,
        group=group,
        steps=reached,
        paused=reached < until,
        resumed_from_step=start,
        refused_checkpoints=refused,
        checkpoint=str(checkpoint.path_of(job.folder.checkpoints, reached)),
        samples_per_second=timing.samples_per_second,
        began=began,
        first_step=timing.first_step,
    )


def _made(run: Run, encoding: Encoding, group: Group, path: Path | None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network and its optimizer as in the checkpoint of `path`, or fresh, with the weights of its seed."""
    torch.manual_seed(loop.mix(run.train.seed, -1))
    model = run.model.network(encoding)
    if path is None:
        run.model.initialize(model)
    model = group.place(model)
    optimizer = make_optimizer(model, run.optim)
    if path is not None:
        checkpoint.restore(path, model, optimizer)
    return model, optimizer


def to_the_end(steps: Generator[Look, None, R]) -> R:
    """What a generator returns when nobody stops it."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(R, end.value)


def guarded_work(job: Job, **where: Any) -> Outcome | Paused:
    """`work` that the driver can pause; its exceptions cross processes as a WorkerFailed: plain strings, the exit code decided where
    the error is whole."""
    try:
        return work(job, **where, asked=elastic.never if where["rank"] else elastic.pause_requested(job.folder.pause))
    except Exception as error:
        raise WorkerFailed(describe(error, where["rank"], time.time())) from None


def _train(
    job: Job,
    group: Group,
    batches: Callable[[int], Iterator[tuple[int, Batch]]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    journal: Journal | None,
    look: Callable[[nn.Module, int], dict[str, float]],
    asked: Callable[[], bool],
    judging: Judging,
    *,
    first: int,
    until: int,
    last: int,
    epoch: int,
    idle: int,
) -> Generator[Look, None, tuple[Timing, int]]:
    """The speed, and the step that was reached: `until`, or the one of a pause."""
    run, settings = job.run, job.run.train
    forward = group.compiled(model) if settings.compile else model
    eval_every = settings.eval_every or epoch
    timing = Timing(settings.batch)
    began = time.perf_counter()
    for step in loop.train(
        forward,
        optimizer,
        run.model.step,
        batches=batches,
        lr=lambda number: learning_rate(number, run.optim, last),
        group=group,
        first=first,
        last=until,
        seed=settings.seed,
        clip=run.optim.clip,
        bf16=settings.precision == "bf16",
        idle=idle,
        wanted=asked,
    ):
        final = step.number == until
        # reading the numbers waits for the device, so on a GPU the clock would stop too early before it
        logged = final or step.number % settings.log_every == 0
        scores = judging.from_means({name: mean.value for name, mean in step.means.items()}) if logged else {}
        timing.add(time.perf_counter() - began, step.data_seconds)
        if scores:
            _log(journal, step, scores, timing)
        seen = look(forward, step.number) if final or step.number % eval_every == 0 else None
        if final or step.pause or step.number % settings.checkpoint_every == 0:
            _save(job, group, model, optimizer, journal, step.number)
        if seen is not None:
            yield Look(-(-step.number // eval_every), step.number, seen, final, group)
        if step.pause and not final:
            return timing, step.number
        began = time.perf_counter()
    return timing, until


def _log(journal: Journal | None, step: loop.Step, scores: dict[str, float], timing: Timing) -> None:
    if journal:
        journal.write(step.number, scores | {"lr": step.lr} | timing.window())
    if not np.isfinite(scores["loss"]):
        raise Diverged(
            f"the loss is {scores['loss']} at step {step.number:,}; a lower optim.lr, a longer optim.warmup or optim.clip=1 may help"
        )


def _save(job: Job, group: Group, model: nn.Module, optimizer: torch.optim.Optimizer, journal: Journal | None, step: int) -> None:
    if not group.all_of(loop.finite(model)):
        raise Diverged(
            f"the weights are no longer finite at step {step:,}; a lower optim.lr, a longer optim.warmup or optim.clip=1 may help"
        )
    if journal:
        journal.sync()
        began = time.perf_counter()
        checkpoint.save(
            job.folder.checkpoints,
            model,
            optimizer,
            step=step,
            identity=job.identity,
            world_size=group.world_size,
            keep=job.run.train.keep,
        )
        journal.write(step, {"perf/checkpoint_seconds": time.perf_counter() - began})
    elif group.together:
        checkpoint.give(model, optimizer)


def _look(
    job: Job,
    group: Group,
    validation: Rows,
    encoding: Encoding,
    journal: Journal | None,
    model: nn.Module,
    compiled: nn.Module,
    step: int,
) -> dict[str, float]:
    """Score the validation examples, and let the workload show what it can do; the last uncompiled, for a text grows at every token."""
    scores = validate(job.run, group, validation, compiled, job.run.model.judging(encoding))
    sample = job.run.model.serving(encoding).sample(model) if journal or group.together else None
    if journal:
        journal.write(step, {f"val/{name}": value for name, value in scores.items()}, {"sample": sample} if sample else {})
    return scores


def _wait_for(job: Job) -> Dataset:
    """The prepared dataset, which the driver may still be making while this process was starting."""
    while not job.store.has(job.fingerprint, dataset.MANIFEST):
        if job.folder.abandoned.exists():
            raise DataError("the data could not be prepared")
        time.sleep(1.0 if job.store.remote else 0.05)
    return dataset.proven(job.store, job.fingerprint)
