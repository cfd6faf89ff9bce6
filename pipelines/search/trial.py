"""Train one trial, in the process of the trial: as any run, but with a report after each validation, which may end it.

A trial of one worker trains in this very process, which is warm: another would cost ten seconds to start. The workers of a larger trial are
launched by Ray Train, and this process follows their journal. Only a confirmation scores the test rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import process
from pipelines.errors import CLUSTER, Failure, WorkerFailed, describe
from pipelines.process import in_background
from pipelines.tracking import journal
from pipelines.training import checkpoint
from pipelines.training.job import Task

if TYPE_CHECKING:
    from pipelines.training.worker import Trained

_POLL_SECONDS = 0.2
Report = dict[str, Any]
Launch = Callable[[Callable[..., Any], Task, Callable[[str], None]], Any]
"""`launch(worker, task, say)` runs `worker(task, rank=…, world_size=…, device=…)` on each worker; returns the first worker's result."""


def train_here(task: Task, weights: Path | None) -> Generator[Report, None, Report]:
    """The trial in this process. `weights`: a checkpoint of another trial to continue from."""
    process.collect_rarely()
    try:
        import torch

        from pipelines.training.worker import training

        device = "cuda" if task.gpus and torch.cuda.is_available() else "cpu"
        if weights:
            checkpoint.adopt(weights, task.job.folder.checkpoints, task.job.identity)
        with contextlib.closing(training(task.job, rank=0, world_size=1, device=device)) as steps:
            while True:
                try:
                    validation = next(steps)
                except StopIteration as end:
                    return _final(task, end.value, rank=0)
                scores = {f"val/{name}": value for name, value in validation.scores.items()}
                yield _report(task, validation.number, validation.step, scores) | {"last": validation.last}
    except Exception as error:
        return _failed(describe(error, 0, time.time()))


def train_on_workers(launch: Launch, task: Task, weights: Path | None) -> Generator[Report, None, Report]:
    """The trial on workers of its own, started by `launch`, which replaces those that are lost."""
    task.job.folder.stop.unlink(missing_ok=True)
    before = [point for point in journal.read(task.job.folder.journal) if task.metric in point.metrics]
    number, offset = len(before), task.job.folder.journal.stat().st_size if before else 0
    working = in_background(lambda: launch(work, task, print))
    try:
        while True:
            done = working.done()  # before the journal is read, so that what was written last is read too
            for point, end in journal.read_from(task.job.folder.journal, offset):
                offset = end
                if task.metric in point.metrics:
                    number += 1
                    yield _report(task, number, point.step, dict(point.metrics))
            if done:
                break
            time.sleep(_POLL_SECONDS)
    except GeneratorExit:
        task.job.folder.stop.touch()
        with contextlib.suppress(Exception):
            working.result()
        raise
    try:
        return working.result() or {"stopped": True}
    except WorkerFailed as error:
        return _failed(error.failure)
    except Exception as error:
        return _failed(Failure(CLUSTER, 0, time.time(), str(error)))


def work(task: Task, *, rank: int, world_size: int, device: str) -> Report | None:
    """The part of one worker of a trial; all workers end together when the trial is stopped, and return None."""
    from pipelines.training.worker import training

    try:
        steps = training(task.job, rank=rank, world_size=world_size, device=device)
        while True:
            try:
                validation = next(steps)
            except StopIteration as end:
                return _final(task, end.value, rank=rank)
            if validation.group.from_first(int(task.job.folder.stop.exists())):
                steps.close()
                return None
    except Exception as error:
        raise WorkerFailed(describe(error, rank, time.time())) from None


def _report(task: Task, number: int, step: int, scores: dict[str, float]) -> Report:
    # a trial without a number must not look good to a population
    value = scores[task.metric]
    ranked = task.sign * value if value == value else float("-inf")
    path = str(checkpoint.path_of(task.job.folder.checkpoints, step))
    return {"value": ranked, "validation": number, "step": step, "scores": scores, "checkpoint": path}


def _final(task: Task, trained: Trained, *, rank: int) -> Report:
    """Score the rows that this trial may see, keep the results in its folder, and make the final report. All workers take part."""
    from pipelines.score import keep_results
    from pipelines.training.worker import predictions, validate

    run, progress = task.job.run, trained.progress
    rows, scores = run.model.examples(getattr(trained.data, task.split), training=False), {}
    if task.split == "test":  # the validation rows were scored at the last validation
        judging = run.model.judging(trained.encoding)
        scores = {f"test/{name}": value for name, value in validate(run, trained.group, rows, trained.model, judging).items()}
    outputs = predictions(run, trained.group, rows, trained.model)
    if rank:
        return {}
    metrics, network = keep_results(run, task.job.folder, trained.data, task.split, scores, outputs, progress.checkpoint)
    return {
        "metrics": metrics,
        "steps": progress.steps,
        "resumed_from_step": progress.resumed_from_step,
        "samples_per_second": progress.samples_per_second,
        "checkpoint": progress.checkpoint,
        "weights_sha256": checkpoint.weights_sha256(network),
    }


def _failed(failure: Failure) -> Report:
    return {"failed": asdict(failure)}
