"""One go at a run: how far it has come, what it holds; and what all goes at the run have cost together.

A run that was stopped and taken up again cost both times. What a driver that was killed outright had cost is not known.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pipelines.run_record import RunFolder
from pipelines.run_states import COST, Cost


@dataclass
class Attempt:
    """From the command to its end: `stage` is startup, prepare, train, evaluate or register; CPUs and GPUs are of all workers together."""

    began: float = field(default_factory=time.time)
    stage: str = "startup"
    cpus: float = 0.0
    gpus: float = 0.0
    _before: Cost | None = None
    _held: Cost = field(default_factory=Cost)
    _since: float | None = None

    def hold(self, workers: int, cpus: float, gpus: float, *, from_now: bool = False) -> None:
        """So many workers (0: this process) of so many CPUs and GPUs each; from the beginning, or from now on where they changed."""
        if from_now:
            self._held, self._since = self.cost(), time.time()
        self.cpus, self.gpus = max(workers, 1) * cpus, max(workers, 1) * gpus

    def cost(self) -> Cost:
        """What this attempt has cost until now."""
        seconds = time.time() - (self._since or self.began)
        return self._held + Cost(seconds, seconds * self.cpus / 3600, seconds * self.gpus / 3600)

    def settle(self, folder: RunFolder) -> Cost:
        """Add this attempt's cost to what is kept in the run's folder; the sum. Settled again later, it counts to then, and once."""
        if self._before is None:
            self._before = folder.read(COST) or Cost()
        total = self._before + self.cost()
        folder.write(COST, total)
        return total
