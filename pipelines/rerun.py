"""Rerun a training only to compare it: in a folder that is deleted afterwards, and without a run in MLflow."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import launch
from pipelines.data.preparation import Plan
from pipelines.errors import DIVERGED, Diverged, WorkerFailed, code_of
from pipelines.run_record import Attempt, RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import IDENTITY
from pipelines.screen import Screen
from pipelines.tracking import journal
from pipelines.training.job import Outcome, Paused

Curves = Mapping[str, Mapping[int, float]]
"""metric -> step -> value."""
NOT_CURVES = ("perf/", "cost/", "seconds/", "test/", "baseline/", "best/", "eval/")
"""Prefixes of metrics that are no curves of the training, or differ from run to run."""


@dataclass(frozen=True)
class Pair:
    """A number of two trainings."""

    step: int
    metric: str
    recorded: float
    now: float

    @property
    def same(self) -> bool:
        """True if both are equal to the bit."""
        return self.recorded == self.now or (math.isnan(self.recorded) and math.isnan(self.now))

    @property
    def size(self) -> float:
        """The relative difference."""
        return abs(self.now - self.recorded) / (abs(self.recorded) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} was {self.recorded!r}, is now {self.now!r} (off by {self.size:.1g} of it)"


@contextmanager
def scratch(root: Path, name: str, run: Run, plan: Plan) -> Iterator[RunFolder]:
    """A run's folder below the storage, where every node reaches it; gone when the block ends."""
    folder = RunFolder(root / ".reproduce" / f"{name}-{uuid.uuid4().hex[:8]}")
    folder.path.mkdir(parents=True)
    try:
        folder.write(IDENTITY, run.identity(plan.fingerprint))
        yield folder
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        with suppress(OSError):
            folder.path.parent.rmdir()


def trained(run: Run, plan: Plan, folder: RunFolder, until: int, screen: Screen) -> Outcome | None:
    """Train to step `until`, resuming from a checkpoint in `folder`: the first worker's outcome, or None if it diverged."""
    try:
        job = launch.job_of(run, plan, folder, stop_after=until)
        return launch.trained(_training_function, job, plan, Attempt(), screen, meanwhile=lambda: None)[1]
    except (Diverged, WorkerFailed) as error:
        if code_of(error) != DIVERGED:
            raise
        screen.say(str(error))
        return None


def _training_function() -> Callable[..., Outcome | Paused]:
    from pipelines.training.worker import work

    return work


def curves(folder: RunFolder) -> dict[str, dict[int, float]]:
    """Every logged number of a training."""
    curves: dict[str, dict[int, float]] = {}
    for point in journal.read(folder.journal):
        for name, value in point.metrics.items():
            curves.setdefault(name, {})[point.step] = value
    return curves


def first_mismatch(recorded: Curves, now: Curves) -> tuple[Pair | None, int]:
    """The first number that is not what it was, and how many there were to compare."""
    compared = pairs(recorded, now)
    return next((pair for pair in compared if not pair.same), None), len(compared)


def pairs(recorded: Curves, now: Curves) -> list[Pair]:
    """Every number of a curve that both have, by steps."""
    named = {name: points for name, points in recorded.items() if not name.startswith(NOT_CURVES)}
    common = sorted((step, name) for name, points in named.items() for step in points if step in now.get(name, {}))
    return [Pair(step, name, named[name][step], now[name][step]) for step, name in common]
