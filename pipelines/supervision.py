"""Launch workers again when one is lost, and tell that apart from a bug: the one goes on from the checkpoint, the other ends the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cluster.workers import WorkersFailed
from pipelines.errors import CLUSTER, WorkerFailed
from pipelines.folder import RunFolder

R = TypeVar("R")


class WorkerLost(Exception):
    """Workers died again and again without a new checkpoint between."""


def supervised(
    launch: Callable[[], R],
    folder: RunFolder,
    *,
    retries: int,
    say: Callable[[str], None],
    restarted: Callable[[str], None] = lambda cause: None,
) -> R:
    """What `launch` gives, launched again for each lost worker; every launch goes on from the newest checkpoint.

    `restarted` is told the cause of each, in a word.

    Raises WorkerFailed for a failure of the workload's own, WorkerLost after `retries` without a new checkpoint between.
    """
    in_a_row, newest = 0, ""
    while True:
        try:
            return launch()
        except WorkersFailed as failed:
            if own := _own_failure(failed):
                raise own from None
            checkpoint = max((path.name for path in folder.checkpoints.glob("step-*")), default="")
            in_a_row = in_a_row + 1 if checkpoint == newest else 1
            newest = checkpoint
            if in_a_row > retries:
                times = f"{in_a_row} times in a row without a new checkpoint (scale.retries={retries})"
                raise WorkerLost(f"{failed}; {times}") from None
            say(f"lost {failed}; going on from {newest or 'the beginning'} ({in_a_row} of scale.retries={retries})")
            restarted("worker")


def _own_failure(failed: WorkersFailed) -> WorkerFailed | None:
    """The first failure that is the workload's own; None where a process or a connection was lost, whose errors are consequences."""
    if failed.lost:
        return None
    raised = [error for error in failed.raised.values() if isinstance(error, WorkerFailed) and error.failure.code != CLUSTER]
    return min(raised, key=lambda error: error.failure.at, default=None)
