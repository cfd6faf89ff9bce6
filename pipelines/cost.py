"""One go at a run: how far it has come, what it holds; and what all goes at the run have cost together.

A run that was stopped and taken up again cost both times. What a driver that was killed outright had cost is not known.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field

from pipelines.run_record import RunFolder, write_atomically


@dataclass(frozen=True)
class Cost:
    """Seconds of the command, and hours of the CPUs and GPUs that its workers held meanwhile, used or not."""

    seconds: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_hours + other.cpu_hours, self.gpu_hours + other.gpu_hours)

    @staticmethod
    def kept(folder: RunFolder) -> Cost:
        """What all attempts at the run have cost that were settled."""
        return Cost(**json.loads(folder.cost.read_text())) if folder.cost.exists() else Cost()

    def metrics(self) -> dict[str, float]:
        """As MLflow has them."""
        return {f"cost/{name}": value for name, value in asdict(self).items()}


@dataclass
class Attempt:
    """From the command to its end: `stage` is startup, prepare, train, evaluate or register; CPUs and GPUs are of all workers together."""

    began: float = field(default_factory=time.time)
    stage: str = "startup"
    cpus: float = 0.0
    gpus: float = 0.0
    _before: Cost | None = None
    _held: Cost = Cost()
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
            self._before = Cost.kept(folder)
        total = self._before + self.cost()
        write_atomically(folder.cost, json.dumps(asdict(total)))
        return total
