"""The job of a worker and its report, apart from the worker: a driver that makes the one and reads the other need not import torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.data.dataset import MANIFEST, Dataset, proven
from pipelines.data.store import Store
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from workloads.base import DataError


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know: plain picklable values."""

    run: Run
    folder: RunFolder
    store: Store
    fingerprint: str
    identity: str
    threads: int
    stop_after: int | None = None
    """Steps after which to stop; all else is as on the way to the last one."""

    def wait_for_data(self) -> Dataset:
        """The prepared dataset, which the driver may still be preparing while a worker starts."""
        while not self.store.has(self.fingerprint, MANIFEST):
            if self.folder.abandoned.exists():
                raise DataError("the data could not be prepared")
            time.sleep(1.0 if self.store.remote else 0.05)
        return proven(self.store, self.fingerprint)

    def steps(self, rows: int) -> int:
        """Steps to be taken over `rows` training examples."""
        steps = self.run.steps(rows)
        return min(steps, self.stop_after or steps)


@dataclass(frozen=True)
class Task:
    """A job of a sweep's trial, with what ranks trials."""

    job: Job
    metric: str
    """The metric that ranks trials: val/accuracy."""
    sign: int
    """1 where more is better, -1 where less is."""
    split: Literal["validation", "test"]
    gpus: float
    """GPUs of one worker."""


@dataclass(frozen=True)
class Paused:
    """Result of a worker that was asked to pause: the checkpoint of `step` stands."""

    step: int


@dataclass(frozen=True)
class Progress:
    """The last step of a training, its checkpoint, and the speed of the steps."""

    steps: int
    resumed_from_step: int
    refused_checkpoints: list[str]
    checkpoint: str
    samples_per_second: float | None
    first_step: float
    """Time of the first step's end."""


@dataclass(frozen=True)
class Outcome(Progress):
    """The report of the first worker when training is done and the test rows are scored."""

    weights_sha256: str
    workers: int
    threads: int
    hardware: str
    metrics: dict[str, float]
    outputs: dict[str, np.ndarray] = field(repr=False)
    trained: float
    """Time of the last step's end."""
    evaluated: float
