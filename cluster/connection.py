"""Check in seconds that a cluster answers and accepts this process, before Ray connects; then watch that it does not go away.

Ray itself waits without end for an address where nobody answers, and 20 s with a wrong token before it says that it "failed to connect"
(2.60).

While connected, Ray's core worker waits (60 s by default) for its control plane, gcs_server, to come back, and some 15 s for its own raylet
to be declared dead, and then calls exit(1) in C++ (2.60): no exception, no `finally`, nothing closed. So a thread asks for both every few
seconds, and interrupts the main thread while there is time to close the run.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass

from cluster import ClusterError, ray_internals

ANSWER_SECONDS = 10.0
_NODE_SECONDS = 10.0
_TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it)"
_SAME = "install the same versions on the driver and every node"
_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_ASK_SECONDS = 2.0
_LOCAL_PATIENCE_SECONDS = 6.0
_PATIENCE_SECONDS = 45.0
"""A cluster of others may start its control plane again (fault tolerance)."""
_RAYLET_PATIENCE_SECONDS = 4.0
"""A raylet is never started again; another one is another node."""


def check(address: str) -> None:
    """Check that the control plane at `address` (host:port) answers, accepts our token and has our version. Raises ClusterError."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        if address.startswith("ray://"):
            return  # Ray Client: another protocol, with a timeout of its own
        raise ClusterError(
            f"RAY_ADDRESS={address} is where jobs are submitted (raylway submit --address {address} -- …); "
            "here the control plane is asked: host:6379"
        )
    version = _alive(address)
    import ray

    if version and version != ray.__version__:
        raise ClusterError(f"RAY_ADDRESS={address}: the cluster runs Ray {version}, this is Ray {ray.__version__}; {_SAME}")
    if not _has_node():
        raise _no_node(f"RAY_ADDRESS={address}")


def refused(where: str, *, presented: bool | None = None) -> ClusterError:
    """The error for a missing or a wrong token. No token is ever in the message."""
    if presented is None:
        presented = token_mode()
    if not presented:
        return ClusterError(f"{where}: the cluster asks for a token, and none was sent; set {_TOKEN}")
    return ClusterError(f"{where}: the cluster does not accept the token of {_source()}; set {_TOKEN} to the token of that cluster")


def no_token() -> ClusterError:
    """The error for RAY_AUTH_MODE=token without a token."""
    return ClusterError(f"RAY_AUTH_MODE=token, but there is no token; set {_TOKEN}, or have it in ~/.ray/auth_token")


def token_mode() -> bool:
    """Whether this process sends a token."""
    return ray_internals.sends_token()


def send_token_if_there() -> bool:
    """Send this process's token from now on, if it has one and RAY_AUTH_MODE does not forbid it, as ray.init does by itself.

    Returns True if one is sent. Raises ClusterError if tokens are on and there is none.
    """
    on, has_token = ray_internals.enable_token()
    if on and not has_token:
        raise no_token()
    return on


def lets_anyone_in(address: str) -> bool:
    """True if the control plane at `address` (host:port) answers without a token."""
    import grpc

    try:
        ray_internals.control_plane_version(address, with_token=False, seconds=ANSWER_SECONDS)
    except grpc.RpcError:
        return False
    return True


def translated(error: BaseException, where: str) -> ClusterError:
    """Ray's error of a failed connection as one sentence."""
    if type(error).__name__ == "AuthenticationError":
        return no_token() if "no authentication token was found" in str(error) else refused(where)
    sentence = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "Version mismatch" in sentence:
        theirs_and_ours = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        theirs, ours = (f"Ray {ray} on Python {python}" for ray, python in theirs_and_ours)
        return ClusterError(f"{where}: the cluster runs {theirs}, this is {ours}; {_SAME}")
    if "No node info found" in sentence:
        return _no_node(where)
    return ClusterError(f"no Ray cluster: {sentence}")


def _alive(address: str) -> str:
    """Ray's version of the cluster at `address`, or ''."""
    import grpc

    where = f"RAY_ADDRESS={address}"
    sent = send_token_if_there()
    try:
        version = ray_internals.control_plane_version(address, with_token=True, seconds=ANSWER_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise refused(where, presented=sent) from None
        reason = "no answer in time" if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else _short(error.details())
        raise ClusterError(
            f"{where}: no Ray control plane answers there ({reason}); is the cluster up, and is the port that of its head?"
        ) from None
    if sent and lets_anyone_in(address):
        raise ClusterError(
            f"{where}: this process has a token ({_source()}), but the cluster runs without authentication; "
            "unset it with RAY_AUTH_MODE=disabled, or start the cluster with RAY_AUTH_MODE=token"
        )
    return version


def _has_node() -> bool:
    """True if a raylet runs on this machine within some seconds: one may be starting. Ray itself looks for a minute (2.60)."""
    deadline = time.monotonic() + _NODE_SECONDS
    while not (running := ray_internals.raylets_here()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return running


def _no_node(where: str) -> ClusterError:
    return ClusterError(
        f"{where}: the cluster is there, but this machine is none of its nodes, and a driver must be on one; submit the job "
        "(ray job submit, raylway submit), or let this machine join by `ray start --address`"
    )


def _source() -> str:
    """The source of this process's token."""
    return next((name for name in _SOURCES if os.environ.get(name)), "~/.ray/auth_token")


def _short(details: str | None) -> str:
    return (details or "no reason given").strip().splitlines()[0][-120:]


# ---- while connected


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
