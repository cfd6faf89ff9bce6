"""Team: how many workers are launched on a cluster, and when they are asked to pause so that others take over, or more of them.

A group of workers has a fixed size from its launch to its end. To be elastic is to pause it and to launch another: the step that was
reached goes on, with the same rows in the same order, however many there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cluster import capacity, nodes
from cluster.capacity import Resources
from cluster.nodes import Node
from pipelines.pausing import Pause, Reason
from pipelines.worker_range import WorkerRange

_POLL_SECONDS = 2.0
_SETTLE_SECONDS = 15.0
PATIENCE_SECONDS = 60.0
ELASTIC_PATIENCE_SECONDS = 20.0
"""A node that died is believed in for a while; who can go on with fewer soon looks again."""


@dataclass(frozen=True)
class Team:
    """The workers of a run on a cluster of several nodes: how many there may be, and what each of them takes."""

    workers: WorkerRange
    cpus: int
    gpus: float
    here: Resources | None = None
    """What this machine has, if it is all there is: nothing of it is taken away or added."""

    @property
    def patience_seconds(self) -> float:
        """How long workers may wait for a place before it is looked again how many fit."""
        return ELASTIC_PATIENCE_SECONDS if self.workers.elastic else PATIENCE_SECONDS

    def size(self) -> int:
        """How many are to be launched now: those that fit, within the bounds. Waits until what former ones held is free again."""
        if not self.workers.elastic:
            return self.workers.most
        if self.here:
            return capacity.fits_machine(self.here, most=self.workers.most, cpus=self.cpus, gpus=self.gpus)
        deadline, before = time.monotonic() + _SETTLE_SECONDS, -1
        while (fit := self._room(nodes.there())) != before and time.monotonic() < deadline:
            before = fit
            time.sleep(1.0)
        return max(self.workers.least, min(fit, self.workers.most))

    @contextmanager
    def watched(self, size: int, pause: Pause) -> Iterator[None]:
        """While the block runs, ask its `size` workers to pause when their node is about to be taken away, or more of them would fit."""
        if self.here:
            yield
            return
        stop, former = threading.Event(), set(nodes.members())

        def watch() -> None:
            seen = None
            while not stop.wait(_POLL_SECONDS) and not pause.reason:
                with suppress(Exception):  # the control plane did not answer: if it is gone for good, the workers say so
                    where = {name: node for name, node in nodes.members().items() if name not in former}
                    found = self.wanted(size, list(where.values()), nodes.there()) if len(where) == size else None
                    if found and (found == seen or not found.counts):  # room must be seen twice: what is just changing hands is none
                        pause.ask(found)
                    seen = found

        thread = threading.Thread(target=watch, name="team", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def wanted(self, size: int, where: list[str], there: Mapping[str, Node]) -> Reason | None:
        """Why `size` workers on the nodes `where` should pause, if they should."""
        if taken := sorted({str(there[node]) for node in where if node in there and there[node].leaving}):
            return Reason(f"{' and '.join(taken)} is about to be taken away", "going on elsewhere", counts=False)
        more = min(size + self._room(there), self.workers.most)
        return Reason(f"room for {more} workers", f"going on with {more}") if more > size else None

    def _room(self, there: Mapping[str, Node]) -> int:
        return capacity.fits_free(there.values(), cpus=self.cpus, gpus=self.gpus)
