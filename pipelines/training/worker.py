"""Worker: the work of each training process, from start to test scores. The same code runs in this process, under Ray and after a crash.

`training` is a generator of the validations of a run. `work` exhausts it and then scores the test rows; a sweep's trial may stop at any
validation, and never sees a test row.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn

from pipelines import process
from pipelines.data.dataset import Dataset
from pipelines.data.order import micro_batches
from pipelines.errors import Diverged, WorkerFailed, describe
from pipelines.run_settings import Run
from pipelines.tracking.journal import Journal
from pipelines.training import checkpoint, loop
from pipelines.training.batches import Stream, delivered, ordered, streamed, strided
from pipelines.training.job import Job, Outcome, Paused, Progress
from pipelines.training.optim import learning_rate, make_optimizer
from pipelines.training.parallel import Group
from pipelines.training.sharding import group_of
from workloads import inference
from workloads.base import Encoding, Rows
from workloads.judging import Judging

R = TypeVar("R")
_WRITER_WAIT_SECONDS = 60.0
_DIVERGED = "a lower optim.lr, a longer optim.warmup or optim.clip=1 may help"


@dataclass(frozen=True)
class Validation:
    """Scores on the validation rows after `step` finished steps; `number` counts the validations of a run from 1."""

    number: int
    step: int
    scores: dict[str, float]
    last: bool
    group: Group


@dataclass(frozen=True)
class Trained:
    """The state of a worker when training is done or `paused`."""

    model: nn.Module
    data: Dataset
    encoding: Encoding
    group: Group
    paused: bool
    progress: Progress


def work(
    job: Job, *, rank: int, world_size: int, device: str, stream: Stream | None = None, pause: Callable[[], bool] = lambda: False
) -> Outcome | Paused:
    """Train from the newest trusted checkpoint (or from nothing) to the last step, then score the test rows.

    With `stream` the training rows are what it gives, in any order; else they are the prepared ones, in the order of their steps.
    Training pauses where `pause` is true.
    """
    trained = to_the_end(training(job, rank=rank, world_size=world_size, device=device, stream=stream, pause=pause))
    if trained.paused:
        return Paused(trained.progress.steps)
    ended = time.time()
    workload = job.run.model
    test, judging = workload.examples(trained.data.test, training=False), workload.judging(trained.encoding)
    metrics = validate(job.run, trained.group, test, trained.model, judging)
    outputs = predictions(job.run, trained.group, test, trained.model)
    return Outcome(
        **vars(trained.progress),
        weights_sha256=checkpoint.weights_sha256(trained.model),
        workers=world_size,
        threads=torch.get_num_threads(),
        hardware=process.hardware(trained.group.device),
        metrics={f"test/{name}": value for name, value in metrics.items()},
        outputs=outputs,
        trained=ended,
        evaluated=time.time(),
    )


def guarded(
    work: Callable[..., Outcome | Paused], pausing: Callable[[Path], Callable[[], bool]], job: Job, **where: Any
) -> Outcome | Paused:
    """Call `work` on Ray: its exceptions cross processes as WorkerFailed, with the exit code decided here.

    The driver can pause it: `pausing` makes the first worker's check for a request at a path.
    """
    if not where["rank"]:
        where["pause"] = pausing(job.folder.pause)
    try:
        return work(job, **where)
    except Exception as error:
        raise WorkerFailed(describe(error, where["rank"], time.time())) from None


def training(
    job: Job, *, rank: int, world_size: int, device: str, stream: Stream | None = None, pause: Callable[[], bool] = lambda: False
) -> Generator[Validation, None, Trained]:
    """Train to the last step, yielding each validation after it is journalled. Closing the generator stops there.

    Where `pause` is true on any worker, all pause after the same step, and its checkpoint stands.
    """
    torch.set_num_threads(job.threads)
    run, workload = job.run, job.run.model
    group = group_of(run.scale.strategy, rank, world_size, process.settle(torch.device(device)))
    data = job.wait_for_data()
    encoding = workload.encoding_type.model_validate(data.manifest.encoding)
    examples, validation = workload.examples(data.train, training=True), workload.examples(data.validation, training=False)
    rows = data.manifest.summary.splits["train"] if stream else len(examples)
    last, until = run.steps(rows), job.steps(rows)
    with ExitStack() as stack:
        journal = stack.enter_context(_only_journal(job)) if rank == 0 else None
        path, refused = checkpoint.newest(job.folder.checkpoints, job.identity) if rank == 0 else (None, [])
        start = group.from_first(-1 if path is None else checkpoint.verify(path).step)
        process.collect_as_usual()
        model, optimizer = _restored(run, encoding, group, None if start < 0 else checkpoint.path_of(job.folder.checkpoints, start))
        start = max(start, 0)
        worker = _Worker(job, group, model, optimizer, journal, encoding, validation)
        share = micro_batches(run.train.batch, run.micro_batch, rank=rank, world_size=world_size)
        batches = streamed(workload, stream, share, run.train.seed + start) if stream else ordered(run, examples, share)
        if group.device.type == "cuda":  # on a CPU a batch takes microseconds, and a thread would take more than that from the network
            batches = stack.enter_context(delivered(range(start, until), batches, group.device))
        forward = group.compiled(model) if run.train.compile else model
        steps = loop.train(
            forward,
            optimizer,
            workload.step,
            batches=batches,
            lr=lambda number: learning_rate(number, run.optim, last),
            group=group,
            first=start,
            last=until,
            seed=run.train.seed,
            clip=run.optim.clip,
            bf16=run.train.precision == "bf16",
            idle=group.idle(len(share), -(-run.train.batch // run.micro_batch)),
            wanted=pause,
        )
        timing = _Timing(run.train.batch)
        reached = yield from worker.follow(steps, forward, timing, until=until, epoch=run.steps_per_epoch(rows))
    return Trained(
        model=model,
        data=data,
        encoding=encoding,
        group=group,
        paused=reached < until,
        progress=Progress(
            steps=reached,
            resumed_from_step=start,
            refused_checkpoints=refused,
            checkpoint=str(checkpoint.path_of(job.folder.checkpoints, reached)),
            samples_per_second=timing.samples_per_second,
            first_step=timing.first_step,
        ),
    )


class _Timing:
    """Steps and their seconds, evaluating and saving left out. The first step, which also builds kernels and buffers, is not counted."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._begun = False
        self.first_step = time.time()
        self._total = self._reported = np.zeros(3)  # steps, seconds, seconds of waiting for data

    def add(self, seconds: float, data_seconds: float) -> None:
        if self._begun:
            self._total = np.add(self._total, (1, seconds, data_seconds))
        else:
            self._begun, self.first_step = True, time.time()

    def window(self) -> dict[str, float]:
        """Rates since the last call; nothing before the second step."""
        steps, seconds, data_seconds = (self._total - self._reported).tolist()
        self._reported = self._total
        return {"perf/samples_per_second": steps * self._batch / seconds, "perf/data_wait": data_seconds / seconds} if seconds else {}

    @property
    def samples_per_second(self) -> float | None:
        steps, seconds, _ = self._total.tolist()
        return steps * self._batch / seconds if seconds else None


@dataclass(frozen=True)
class _Worker:
    """The work between steps: numbers are logged, validation rows scored, checkpoints written. The first worker has the journal."""

    job: Job
    group: Group
    model: nn.Module
    optimizer: torch.optim.Optimizer
    journal: Journal | None
    encoding: Encoding
    validation: Rows

    def follow(
        self, steps: Iterator[loop.Step], forward: nn.Module, timing: _Timing, *, until: int, epoch: int
    ) -> Generator[Validation, None, int]:
        """Follow the loop to step `until` or to a pause; the step that was reached."""
        settings, judging = self.job.run.train, self.job.run.model.judging(self.encoding)
        eval_every = settings.eval_every or epoch
        began = time.perf_counter()
        for step in steps:
            final = step.number == until
            # reading the numbers waits for the device, so on a GPU the clock would stop too early before it
            logged = final or step.number % settings.log_every == 0
            scores = judging.from_means({name: mean.value for name, mean in step.means.items()}) if logged else {}
            timing.add(time.perf_counter() - began, step.data_seconds)
            if scores:
                self.log(step, scores, timing)
            validated = self.validate(forward, step.number) if final or step.number % eval_every == 0 else None
            if final or step.pause or step.number % settings.checkpoint_every == 0:
                self.save(step.number)
            if validated is not None:
                yield Validation(-(-step.number // eval_every), step.number, validated, final, self.group)
            if step.pause and not final:
                return step.number
            began = time.perf_counter()
        return until

    def log(self, step: loop.Step, scores: dict[str, float], timing: _Timing) -> None:
        if self.journal:
            self.journal.write(step.number, scores | {"lr": step.lr} | timing.window())
        if not np.isfinite(scores["loss"]):
            raise Diverged(f"the loss is {scores['loss']} at step {step.number:,}; {_DIVERGED}")

    def validate(self, forward: nn.Module, step: int) -> dict[str, float]:
        """Score the validation examples and let the workload show a sample; the latter uncompiled, for a text grows at every token."""
        run, workload = self.job.run, self.job.run.model
        scores = validate(run, self.group, self.validation, forward, workload.judging(self.encoding))
        sample = workload.serving(self.encoding).sample(self.model) if self.journal or self.group.sharded else None
        if self.journal:
            self.journal.write(step, {f"val/{name}": value for name, value in scores.items()}, {"sample": sample} if sample else {})
        return scores

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`, after the journal is on the disk up to it."""
        job = self.job
        if not self.group.all_of(loop.finite(self.model)):
            raise Diverged(f"the weights are no longer finite at step {step:,}; {_DIVERGED}")
        if self.journal:
            self.journal.sync()
            began = time.perf_counter()
            checkpoint.save(
                job.folder.checkpoints,
                self.model,
                self.optimizer,
                step=step,
                identity=job.identity,
                world_size=self.group.world_size,
                keep=job.run.train.keep,
            )
            self.journal.write(step, {"perf/checkpoint_seconds": time.perf_counter() - began})
        elif self.group.sharded:
            checkpoint.give(self.model, self.optimizer)


def validate(run: Run, group: Group, rows: Rows, model: nn.Module, judging: Judging) -> dict[str, float]:
    """Metrics over the rows of all workers, each counted once however many workers there are."""
    batches, idle = strided(run, group, rows)
    means = loop.evaluate(model, run.model.step, batches, group=group, bf16=run.train.precision == "bf16", idle=idle)
    return judging.from_means(means)


def predictions(run: Run, group: Group, rows: Rows, model: nn.Module) -> dict[str, np.ndarray]:
    """Predictions for all rows, gathered from all workers, in row order."""
    batches, idle = strided(run, group, rows)
    own = len(range(group.rank, len(rows), group.world_size))
    outputs = inference.forward(run.model.predict, model, itertools.chain(batches, idle))
    return {name: group.gather_strided(output[:own], len(rows)).cpu().numpy() for name, output in outputs.items()}


def to_the_end(steps: Generator[Validation, None, R]) -> R:
    """The return value of a generator that nobody stops."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(R, end.value)


def _restored(run: Run, encoding: Encoding, group: Group, path: Path | None) -> tuple[nn.Module, torch.optim.Optimizer]:
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


@contextmanager
def _only_journal(job: Job) -> Iterator[Journal]:
    """The journal, while no other process writes into the run's folder."""
    with job.folder.locked("writer", wait_seconds=_WRITER_WAIT_SECONDS), closing(Journal(job.folder.journal)) as journal:
        yield journal
