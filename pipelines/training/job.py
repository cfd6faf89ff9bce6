"""What a worker is told. Apart from the worker, so that who only says it need not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.data.store import Store
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run


@dataclass(frozen=True)
class Job:
    """All that a worker is told: plain picklable values."""

    run: Run
    folder: RunFolder
    store: Store
    fingerprint: str
    identity: str
    threads: int
    stop_after: int | None = None
    """Steps after which to stop, all being as on the way to the last one."""

    def steps(self, rows: int) -> int:
        """Steps to be taken over `rows` training examples."""
        steps = self.run.steps(rows)
        return min(steps, self.stop_after or steps)
