"""The numbers of a run that an operator watches, read from its folder: nothing of it touches training.

The names here are all that there are; the dashboard and the alert rules in infra/monitoring are checked against them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from cluster.metrics import Metric, Sample
from pipelines.run_record import RunFolder, backlog
from pipelines.run_settings import Run
from pipelines.tracking import journal
from pipelines.training import checkpoint

STEP = Metric("raylway_step", "Finished optimizer steps, as last journalled.")
SAMPLES = Metric("raylway_samples_per_second", "Training rows a second over all workers, evaluating and saving left out.")
STEP_SECONDS = Metric("raylway_step_seconds", "Seconds of one optimizer step.")
DATA_WAIT = Metric("raylway_data_wait_ratio", "Share of the stepping time that was spent waiting for data, 0 to 1.")
CHECKPOINT_AGE = Metric("raylway_checkpoint_age_seconds", "Seconds since the newest checkpoint was sealed, or since the command began.")
CHECKPOINT_INTERVAL = Metric("raylway_checkpoint_interval_seconds", "Seconds that train.checkpoint_every steps take at the present speed.")
CHECKPOINT_SECONDS = Metric("raylway_checkpoint_seconds", "Seconds that writing the newest checkpoint took.")
BACKLOG_BYTES = Metric("raylway_journal_backlog_bytes", "Bytes of the journal that MLflow has not been given yet.")
BACKLOG_SECONDS = Metric("raylway_journal_backlog_seconds", "Seconds for which the first point not yet given to MLflow has waited.")
RESTARTS = Metric("raylway_restarts", "How often training was begun again from a checkpoint.", tags=("cause",), counted=True)
TRIALS = Metric("raylway_trials", "Trials of a sweep by status: running, finished, stopped, failed.", tags=("status",))
ALL = (
    *(STEP, SAMPLES, STEP_SECONDS, DATA_WAIT, CHECKPOINT_AGE, CHECKPOINT_INTERVAL, CHECKPOINT_SECONDS),
    *(BACKLOG_BYTES, BACKLOG_SECONDS, RESTARTS, TRIALS),
)
_OF_JOURNAL = {"perf/samples_per_second": SAMPLES, "perf/data_wait": DATA_WAIT, "perf/checkpoint_seconds": CHECKPOINT_SECONDS}
_STATUSES = ("running", "finished", "stopped", "failed")


def tags(run: Run, folder: RunFolder) -> dict[str, str]:
    """Labels of every metric of a command."""
    return {"run": folder.path.name, "recipe": run.recipe}


class Gauges:
    """Reads the gauges of the run in `folder`; each reading goes on in the journal where the last one ended."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self._run, self._folder = run, folder
        self._began = time.time()
        self._offset, self._step = 0, 0
        self._last: dict[str, float] = {}
        self._restarts: Counter[str] = Counter()
        if checkpoint.latest(self._folder.checkpoints):  # the command was given before: its driver or its whole cluster was lost or stopped
            self.restarted("command")

    def restarted(self, cause: str) -> None:
        """Training was begun again, for the cause (worker, preempted …) that the counter's tag is to say."""
        self._restarts[cause] += 1

    def read(self) -> Iterator[Sample]:
        """The metrics that are known now."""
        for point, end in journal.read_from(self._folder.journal, self._offset):
            self._offset, self._step = end, max(point.step, self._step)
            self._last.update(point.metrics)
        yield Sample(STEP, self._step)
        yield from (Sample(metric, self._last[name]) for name, metric in _OF_JOURNAL.items() if name in self._last)
        if speed := self._last.get("perf/samples_per_second"):
            seconds = self._run.train.batch / speed
            yield Sample(STEP_SECONDS, seconds)
            yield Sample(CHECKPOINT_INTERVAL, seconds * self._run.train.checkpoint_every)
        newest = checkpoint.latest(self._folder.checkpoints)
        sealed_at = (newest / checkpoint.MANIFEST).stat().st_mtime if newest else 0
        yield Sample(CHECKPOINT_AGE, max(time.time() - max(sealed_at, self._began), 0))
        unsent_bytes, seconds = backlog(self._folder)
        yield Sample(BACKLOG_BYTES, unsent_bytes)
        yield Sample(BACKLOG_SECONDS, seconds)
        for cause in list(self._restarts):
            yield Sample(RESTARTS, self._restarts.pop(cause), {"cause": cause})


def of_sweep(folder: RunFolder, statuses: Callable[[], Iterable[str]]) -> Callable[[], Iterator[Sample]]:
    """Reads the gauges of a sweep: how many trials are in which status, and what of its own page MLflow has not been given."""

    def read() -> Iterator[Sample]:
        counts = Counter(statuses())
        yield from (Sample(TRIALS, counts[status], {"status": status}) for status in _STATUSES)
        yield Sample(BACKLOG_BYTES, backlog(folder)[0])

    return read
