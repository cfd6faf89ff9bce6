"""The job of a worker, apart from the worker: a driver that only makes one need not import torch."""

from __future__ import annotations

import time
from dataclasses import dataclass

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
