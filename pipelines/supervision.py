"""Launch workers again when one is lost or all have paused, which go on from the checkpoint; a bug ends the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cluster.ray_train import NotStarted, WorkersFailed
from pipelines.errors import CLUSTER, WorkerFailed
from pipelines.pausing import Pause, Paused
from pipelines.run_record import RunFolder
from pipelines.training import checkpoint

R = TypeVar("R")


class WorkerLost(Exception):
    """Workers died again and again without a new checkpoint between."""


def supervised(
    launch: Callable[[], R | Paused],
    folder: RunFolder,
    *,
    pause: Pause,
    retries: int,
    say: Callable[[str], None],
    restarted: Callable[[str], None] = lambda cause: None,
) -> R | None:
    """What `launch` gives, launched again for each lost worker and after each pause; every launch goes on from the newest checkpoint.

    Only losses are retries: not a pause, not workers that found no place, not those of a node that was announced to go away. None where
    `pause` was asked to stop.

    `restarted` is told the cause of each, in a word.

    Raises WorkerFailed for a failure of the workload's own, WorkerLost after `retries` without a new checkpoint between.
    """
    in_a_row, newest = 0, ""
    while not pause.stopping:
        pause.over()
        try:
            result = launch()
        except NotStarted as error:
            say(str(error))
        except WorkersFailed as failed:
            if own := _own_failure(failed):
                raise own from None
            latest = checkpoint.latest_name(folder.checkpoints)
            going_on = f"lost {failed}; going on from {latest or 'the beginning'}"
            if pause.reason and not pause.reason.counts:
                say(f"{pause.reason.text}, and did not wait for a checkpoint: {going_on}")
                restarted("preempted")
                continue
            in_a_row = in_a_row + 1 if latest == newest else 1
            newest = latest
            if in_a_row > retries:
                times = f"{in_a_row} times in a row without a new checkpoint (scale.retries={retries})"
                raise WorkerLost(f"{failed}; {times}") from None
            say(f"{going_on} ({in_a_row} of scale.retries={retries})")
            restarted("worker")
        else:
            if not isinstance(result, Paused):
                return result
            if pause.reason:
                say(f"{pause.reason.text}: checkpoint at step {result.step:,}, {pause.reason.then}")
            restarted("pause")
    return None


def _own_failure(failed: WorkersFailed) -> WorkerFailed | None:
    """The first failure that is the workload's own; None where a process or a connection was lost, whose errors are consequences."""
    if failed.lost:
        return None
    raised = [error for error in failed.raised.values() if isinstance(error, WorkerFailed) and error.failure.code != CLUSTER]
    return min(raised, key=lambda error: error.failure.at, default=None)
