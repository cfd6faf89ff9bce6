"""Trial: what the process of one trial does. It trains as any run does, and reports each look at the validation rows.

A trial of one worker trains in this very process, which is warm: another one would cost ten seconds to start. One of several workers has
them launched by Ray Train, and follows their journal. Only a confirmation sees the test rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines import process
from pipelines.errors import CLUSTER, Failure, WorkerFailed, describe
from pipelines.process import in_background
from pipelines.tracking import journal
from pipelines.training import checkpoint
from pipelines.training.job import Job

if TYPE_CHECKING:
    from pipelines.training.worker import Look, Trained

_POLL_SECONDS = 0.2
Report = dict[str, Any]
Launch = Callable[[Callable[..., Any], "Task", Callable[[str], None]], Any]
"""`launch(member, task, say)` runs `member(task, rank=…, world_size=…, device=…)` on each worker, and gives what the first returned."""


@dataclass(frozen=True)
class Task:
    """All that a trial is told."""

    job: Job
    metric: str
    """What it is ranked by: val/accuracy."""
    sign: int
    """1 where more is better, -1 where less is."""
    split: Literal["validation", "test"]
    gpus: float
    """GPUs of one worker."""

    @property
    def stop(self) -> Path:
        """Stands where the workers of this trial are to end at their next look."""
        return self.job.folder.path / ".stop"


def alone(task: Task, weights: Path | None) -> Generator[Report, None, Report]:
    """The trial in this process. `weights`: a checkpoint of another trial to go on from."""
    process.collect_rarely()
    try:
        import torch

        from pipelines.training.worker import training

        device = "cuda" if task.gpus and torch.cuda.is_available() else "cpu"
        if weights:
            checkpoint.adopt(weights, task.job.folder.checkpoints, task.job.identity)
        trained = yield from _told(task, training(task.job, rank=0, world_size=1, device=device))
        return _conclude(task, trained, rank=0)
    except Exception as error:
        return _failed(describe(error, 0, time.time()))


def together(launch: Launch, task: Task, weights: Path | None) -> Generator[Report, None, Report]:
    """The trial on workers of its own, which are `launch`ed; a lost one is replaced there."""
    task.stop.unlink(missing_ok=True)
    seen = [point for point in journal.read(task.job.folder.journal) if task.metric in point.metrics]
    number, offset = len(seen), task.job.folder.journal.stat().st_size if seen else 0
    done = in_background(lambda: launch(member, task, print))
    try:
        while True:
            ended = done.done()  # before the journal is read: what was written last must be seen
            for point, end in journal.read_from(task.job.folder.journal, offset):
                offset = end
                if task.metric in point.metrics:
                    number += 1
                    yield _report(task, number, point.step, dict(point.metrics))
            if ended:
                return _result(done)
            time.sleep(_POLL_SECONDS)
    except GeneratorExit:
        task.stop.touch()
        with contextlib.suppress(Exception):
            done.result()
        raise


def member(task: Task, *, rank: int, world_size: int, device: str) -> Report | None:
    """What each worker of a trial does; all end together when the trial is stopped."""
    from pipelines.training.worker import training

    try:
        steps = training(task.job, rank=rank, world_size=world_size, device=device)
        while True:
            try:
                look = next(steps)
            except StopIteration as end:
                return _conclude(task, end.value, rank=rank)
            if look.group.from_first(int(task.stop.exists())):
                steps.close()
                return None
    except Exception as error:
        raise WorkerFailed(describe(error, rank, time.time())) from None


def _told(task: Task, steps: Generator[Look, None, Trained]) -> Generator[Report, None, Trained]:
    with contextlib.closing(steps):
        while True:
            try:
                look = next(steps)
            except StopIteration as end:
                trained: Trained = end.value
                return trained
            scores = {f"val/{name}": value for name, value in look.scores.items()}
            yield _report(task, look.number, look.step, scores) | {"last": look.last}


def _report(task: Task, number: int, step: int, scores: dict[str, float]) -> Report:
    # a trial without a number must not look good to a population
    value = scores[task.metric]
    ranked = task.sign * value if value == value else float("-inf")
    path = str(checkpoint.path_of(task.job.folder.checkpoints, step))
    return {"value": ranked, "look": number, "step": step, "scores": scores, "checkpoint": path}


def _conclude(task: Task, trained: Trained, *, rank: int) -> Report:
    """Score the rows that this trial may see, draw its figures into its folder, and say what came of it. All workers take part."""
    from pipelines import shown_by
    from pipelines.evaluation.row_scores import ARTIFACT, row_scores, write
    from pipelines.training.scoring import predictions, validate
    from pipelines.training.worker import whole_network

    run, folder = task.job.run, task.job.folder
    rows, judging = run.model.examples(getattr(trained.data, task.split), training=False), run.model.judging(trained.encoding)
    judged = task.split == "test"  # the validation rows were scored at the last look
    scores = validate(run, trained.group, rows, trained.model, judging) if judged else {}
    outputs = predictions(run, trained.group, rows, trained.model)
    if rank:
        return {}
    baselines, written = {}, {}
    if judged:
        baselines = run.model.baselines(run.model.examples(trained.data.train, training=True), rows, trained.encoding)
        written = {f"test/{name}": value for name, value in scores.items()}
        write(folder.page / ARTIFACT, row_scores(judging, outputs, rows))
    metrics = shown_by.record(run, folder, written, baselines)
    network = whole_network(task.job, trained)
    shown_by.keep(folder, shown_by.figures(run, folder, network, outputs, rows, trained.encoding))
    return {
        "metrics": metrics,
        "steps": trained.steps,
        "resumed_from_step": trained.resumed_from_step,
        "samples_per_second": trained.samples_per_second,
        "checkpoint": trained.checkpoint,
        "weights_sha256": checkpoint.weights_sha256(network),
    }


def _result(done: Future[Any]) -> Report:
    try:
        return done.result() or {"stopped": True}
    except WorkerFailed as error:
        return _failed(error.failure)
    except Exception as error:
        return _failed(Failure(CLUSTER, 0, time.time(), str(error), "", ""))


def _failed(failure: Failure) -> Report:
    return {"failed": asdict(failure)}
