"""See that the control plane is gone, and end the command with a sentence before Ray ends the process without one.

Ray's core worker waits (60 s by default) for its control plane, gcs_server, to come back and then calls exit(1) in C++ (2.60): no
exception, no `finally`, nothing closed. So a thread asks for it every few seconds, and interrupts the main thread while there is time
to close the run.
"""

from __future__ import annotations

import signal
import socket
import threading

from cluster.errors import ClusterError

_ASK_SECONDS = 2.0
_LOCAL_PATIENCE_SECONDS = 6.0
_PATIENCE_SECONDS = 45.0
"""A cluster of others may start its control plane again (fault tolerance)."""


class Watch:
    """Asks the control plane at `address` (host:port) whether it is there, until it is not."""

    def __init__(self, address: str, *, local: bool) -> None:
        host, _, port = address.rpartition(":")
        self.address, self._place = address, (host.strip("[]"), int(port))
        self._patience = _LOCAL_PATIENCE_SECONDS if local else _PATIENCE_SECONDS
        self.lost = False
        self._over = threading.Event()
        threading.Thread(target=self._run, name="control plane", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def gone(self) -> bool:
        """Whether nobody listens there now."""
        try:
            socket.create_connection(self._place, timeout=_ASK_SECONDS).close()
        except OSError:
            return True
        return False

    def explains(self, error: BaseException) -> bool:
        """Whether what ended the work was the loss of the control plane: our own interrupt, or an error while nobody listens."""
        return self.lost or (isinstance(error, Exception) and self.gone())

    def error(self) -> ClusterError:
        return ClusterError(f"the cluster's control plane at {self.address} is gone; what was saved stands")

    def _run(self) -> None:
        silent = 0.0
        while not self._over.wait(_ASK_SECONDS):
            silent = silent + _ASK_SECONDS if self.gone() else 0.0
            if silent >= self._patience and not self._over.is_set():
                self.lost = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it, wherever it waits
                return
