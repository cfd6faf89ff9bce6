"""Elastic training: how many workers are launched, when they pause, and when they are launched again.

A group of workers has a fixed size from its launch to its end. To be elastic is to pause it and to launch another: the step that was
reached goes on, with the same rows in the same order, however many there are. In a pause all workers stop after the same step and leave
its checkpoint, so no step is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cluster import capacity, nodes
from cluster.capacity import Resources, WorkerRange
from cluster.nodes import Node
from cluster.ray_train import NotStarted, WorkersFailed
from pipelines.errors import CLUSTER, WorkerFailed
from pipelines.run_record import RunFolder
from pipelines.training import checkpoint
from pipelines.training.job import Paused

R = TypeVar("R")
_LOOK_SECONDS = 1.0
_POLL_SECONDS = 2.0
_SETTLE_SECONDS = 15.0
PATIENCE_SECONDS = 60.0
ELASTIC_PATIENCE_SECONDS = 20.0
"""Ray takes a node that died for alive for a while; a run that can go on with fewer workers soon counts again."""


class WorkerLost(Exception):
    """Workers died again and again without a new checkpoint between."""


@dataclass(frozen=True)
class Reason:
    """The cause of a pause, in words for people."""

    text: str
    """The event, such as: room for 3 workers."""
    then: str
    """The continuation, such as: going on with 3."""
    counts: bool = True
    """True if a worker that is lost meanwhile counts as a retry: not if its end was announced."""


STOP = Reason("asked to stop", "it is the last", counts=False)
"""After this pause nothing is launched again."""


class Pause:
    """The driver's side of pausing one run: at most one request at a time.

    The request is what a file in the run's folder says, which every node reaches. The file is made before the workers start and is only
    written into: NFS may answer for a minute that a file is not there yet, but shows what is in one whenever it is opened anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reason: Reason | None = None
        """The reason of the present request; None while there is none."""

    @property
    def stopping(self) -> bool:
        """True if nothing is to be launched again."""
        return self.reason is STOP

    def request(self, reason: Reason = STOP) -> None:
        """Ask the workers to pause, by default for good: to stop outweighs any other reason."""
        if not self.stopping:
            self.reason = reason
            self._path.write_text("asked")

    def clear(self) -> None:
        """Take the request back, before workers are launched; a request to stop stays."""
        if not self.stopping:
            self.reason = None
            self._path.write_text("")


def pause_requested(path: Path) -> Callable[[], bool]:
    """The workers' side: a check for a request. It reads the file once a second at most, so it may be called at each step."""
    read_at, requested = float("-inf"), False

    def check() -> bool:
        nonlocal read_at, requested
        if not requested and time.monotonic() - read_at >= _LOOK_SECONDS:
            read_at = time.monotonic()
            try:
                requested = bool(path.read_text())
            except OSError:  # nobody will ask: a run without a driver that watches
                requested = False
        return requested

    return check


@dataclass(frozen=True)
class WorkerGroup:
    """The size of a run's worker group on a cluster, within its bounds, and reasons to change it."""

    workers: WorkerRange
    cpus: int
    gpus: float
    here: Resources | None = None
    """This machine, if it is the whole cluster: then nothing is taken away or added."""

    @property
    def patience_seconds(self) -> float:
        """Seconds that workers may wait for their placement group before it is counted again how many fit."""
        return ELASTIC_PATIENCE_SECONDS if self.workers.elastic else PATIENCE_SECONDS

    def size(self) -> int:
        """The number of workers to launch now: those that fit, within the bounds, once the CPUs of former ones are free again."""
        if not self.workers.elastic:
            return self.workers.most
        if self.here:
            return min(self.workers.most, capacity.fits(self.here.each_node, cpus=self.cpus, gpus=self.gpus))
        deadline, before = time.monotonic() + _SETTLE_SECONDS, -1
        while (fit := self._fit_more(nodes.alive())) != before and time.monotonic() < deadline:
            before = fit
            time.sleep(1.0)
        return max(self.workers.least, min(fit, self.workers.most))

    @contextmanager
    def watched(self, size: int, pause: Pause) -> Iterator[None]:
        """While the block runs, ask its `size` workers to pause when their node is about to be taken away, or more of them would fit."""
        if self.here:
            yield
            return
        stop, former = threading.Event(), set(nodes.training_workers())

        def watch() -> None:
            before = None
            while not stop.wait(_POLL_SECONDS) and not pause.reason:
                with suppress(Exception):  # the control plane did not answer: if it is gone for good, the workers say so
                    where = {worker: node for worker, node in nodes.training_workers().items() if worker not in former}
                    reason = self.reason_to_pause(size, list(where.values()), nodes.alive()) if len(where) == size else None
                    if reason and (reason == before or not reason.counts):  # room must be seen twice: what is just changing hands is none
                        pause.request(reason)
                    before = reason

        thread = threading.Thread(target=watch, name="elastic", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def reason_to_pause(self, size: int, where: list[str], alive: Mapping[str, Node]) -> Reason | None:
        """The reason to pause `size` workers on the nodes `where`; None if there is none."""
        if leaving := sorted({str(alive[node]) for node in where if node in alive and alive[node].leaving}):
            return Reason(f"{' and '.join(leaving)} is about to be taken away", "going on elsewhere", counts=False)
        more = min(size + self._fit_more(alive), self.workers.most)
        return Reason(f"room for {more} workers", f"going on with {more}") if more > size else None

    def _fit_more(self, alive: Mapping[str, Node]) -> int:
        free = [(node.cpus, node.gpus) for node in alive.values() if not node.leaving]
        return capacity.fits(free, cpus=self.cpus, gpus=self.gpus)


def with_restarts(
    launch: Callable[[], R | Paused],
    folder: RunFolder,
    *,
    pause: Pause,
    retries: int,
    say: Callable[[str], None],
    restarted: Callable[[str], None] = lambda cause: None,
) -> R | None:
    """The result of `launch`, which is called again for each lost worker and after each pause, and goes on from the newest checkpoint.

    Only losses are retries: not a pause, not workers that found no place, not those of a node that was announced to go away. None where
    `pause` was asked to stop. `restarted` is told the cause of each restart, in a word.

    Raises WorkerFailed for a failure of the workload's own, WorkerLost after `retries` without a new checkpoint between.
    """
    in_a_row, newest = 0, ""
    while not pause.stopping:
        pause.clear()
        try:
            result = launch()
        except NotStarted as error:
            say(str(error))
        except WorkersFailed as failed:
            if own := _own_failure(failed):
                raise own from None
            reached = checkpoint.latest_name(folder.checkpoints)
            going_on = f"lost {failed}; going on from {reached or 'the beginning'}"
            if pause.reason and not pause.reason.counts:
                say(f"{pause.reason.text}, and did not wait for a checkpoint: {going_on}")
                restarted("preempted")
                continue
            in_a_row = in_a_row + 1 if reached == newest else 1
            newest = reached
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
