"""See that the cluster is gone, and end the command with a sentence before Ray ends the process without one.

Ray's core worker waits (60 s by default) for its control plane, gcs_server, to come back, and some 15 s for its own raylet to be declared
dead, and then calls exit(1) in C++ (2.60): no exception, no `finally`, nothing closed. So a thread asks for both every few seconds, and
interrupts the main thread while there is time to close the run.
"""

from __future__ import annotations

import signal
import socket
import threading
from dataclasses import dataclass

from cluster import ClusterError

_ASK_SECONDS = 2.0
_LOCAL_PATIENCE_SECONDS = 6.0
_PATIENCE_SECONDS = 45.0
"""A cluster of others may start its control plane again (fault tolerance)."""
_RAYLET_PATIENCE_SECONDS = 4.0
"""A raylet is never started again; another one is another node."""


@dataclass(frozen=True)
class _Place:
    """Where something listens (host:port), and how long it may be silent."""

    name: str
    address: str
    patience_seconds: float

    def silent(self) -> bool:
        """Whether nobody listens there now."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ASK_SECONDS).close()
        except OSError:
            return True
        return False


class Watch:
    """Asks the control plane at `address` and this machine's raylet at `raylet` (host:port) whether they are there, until one is not."""

    def __init__(self, address: str, *, local: bool, raylet: str | None = None) -> None:
        patience = _LOCAL_PATIENCE_SECONDS if local else _PATIENCE_SECONDS
        self._places = [_Place("the cluster's control plane", address, patience)]
        if raylet:
            self._places += [_Place("this machine's own node of the cluster (its raylet)", raylet, _RAYLET_PATIENCE_SECONDS)]
        self.lost = False
        self._gone = self._places[0]
        self._over = threading.Event()
        threading.Thread(target=self._run, name="control plane", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def gone(self) -> bool:
        """Whether one of them is not there now."""
        for place in self._places:
            if place.silent():
                self._gone = place
                return True
        return False

    def explains(self, error: BaseException) -> bool:
        """Whether what ended the work was the loss of the cluster: our own interrupt, or an error while nobody listens."""
        return self.lost or (isinstance(error, Exception) and self.gone())

    def error(self) -> ClusterError:
        return ClusterError(f"{self._gone.name} at {self._gone.address} is gone; what was saved stands")

    def _run(self) -> None:
        silent = dict.fromkeys(self._places, 0.0)
        while not self._over.wait(_ASK_SECONDS):
            for place in self._places:
                silent[place] = silent[place] + _ASK_SECONDS if place.silent() else 0.0
                if silent[place] >= place.patience_seconds and not self._over.is_set():
                    self._gone, self.lost = place, True
                    self.gone()  # where both are gone, the control plane is to be named
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it, wherever it waits
                    return
