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

from cluster import ClusterError, ray_internals

ANSWER_SECONDS = 10.0
_NODE_SECONDS = 10.0
_TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it)"
_SAME = "install the same versions on the driver and every node"
_ASK_SECONDS = 2.0
_LOCAL_PATIENCE_SECONDS = 6.0
_PATIENCE_SECONDS = 45.0
"""A cluster of others may start its control plane again (GCS fault tolerance)."""
_RAYLET_PATIENCE_SECONDS = 4.0
"""A raylet is never started again; another one is another node."""


def check(address: str) -> None:
    """Check that the control plane (GCS) at `address` (host:port) answers, accepts our token and has our version of Ray, and that this
    machine is a node of a cluster. Raises ClusterError."""
    if address in ("auto", "local") or address.startswith("ray://"):  # Ray Client is another protocol, with a timeout of its own
        return
    where = f"RAY_ADDRESS={address}"
    if "://" in address:
        raise ClusterError(
            f"{where} is where jobs are submitted (raylway submit --address {address} -- …); here the head node's GCS is meant: host:6379"
        )
    version = _version(address)
    import ray

    if version and version != ray.__version__:
        raise ClusterError(f"{where}: the cluster runs Ray {version}, this is Ray {ray.__version__}; {_SAME}")
    deadline = time.monotonic() + _NODE_SECONDS  # a raylet may be starting; Ray itself looks for a minute (2.60)
    while not ray_internals.raylets_here():
        if time.monotonic() > deadline:
            raise _no_node(where)
        time.sleep(0.5)


def refused(where: str, *, presented: bool) -> ClusterError:
    """The error for a missing or a wrong token (`presented`: one was sent). No token is ever in the message."""
    if not presented:
        return ClusterError(f"{where}: the cluster asks for a token, and none was sent; set {_TOKEN}")
    return ClusterError(f"{where}: the cluster does not accept the token of {_token_source()}; set {_TOKEN} to the token of that cluster")


def send_token_if_there() -> bool:
    """Send this process's token from now on, if it has one and RAY_AUTH_MODE does not forbid it, as ray.init does by itself.

    Returns True if one is sent. Raises ClusterError if token authentication is on and there is none.
    """
    on, has_token = ray_internals.enable_token()
    if on and not has_token:
        raise _no_token()
    return on


def is_open(address: str) -> bool:
    """True if the control plane (GCS) at `address` (host:port) answers without a token."""
    import grpc

    try:
        ray_internals.control_plane_version(address, with_token=False, seconds=ANSWER_SECONDS)
    except grpc.RpcError:
        return False
    return True


def translated(error: BaseException, where: str) -> ClusterError:
    """Ray's error of a failed connection as one sentence."""
    if type(error).__name__ == "AuthenticationError":
        missing = "no authentication token was found" in str(error)
        return _no_token() if missing else refused(where, presented=ray_internals.sends_token())
    sentence = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "Version mismatch" in sentence:
        theirs_and_ours = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        theirs, ours = (f"Ray {ray} on Python {python}" for ray, python in theirs_and_ours)
        return ClusterError(f"{where}: the cluster runs {theirs}, this is {ours}; {_SAME}")
    return _no_node(where) if "No node info found" in sentence else ClusterError(f"no Ray cluster: {sentence}")


def _version(address: str) -> str:
    """Ray's version of the cluster at `address`, or ''. Raises ClusterError if it does not answer, or not with this process's token."""
    import grpc

    where = f"RAY_ADDRESS={address}"
    sent = send_token_if_there()
    try:
        version = ray_internals.control_plane_version(address, with_token=True, seconds=ANSWER_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise refused(where, presented=sent) from None
        late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        reason = "no answer in time" if late else (error.details() or "no reason given").strip().splitlines()[0][-120:]
        raise ClusterError(
            f"{where}: no Ray control plane (GCS) answers there ({reason}); is the cluster up, and is the port that of its head node?"
        ) from None
    if sent and is_open(address):
        raise ClusterError(
            f"{where}: this process has a token ({_token_source()}), but the cluster runs without authentication; "
            "unset it with RAY_AUTH_MODE=disabled, or start the cluster with RAY_AUTH_MODE=token"
        )
    return version


def _no_token() -> ClusterError:
    return ClusterError(f"RAY_AUTH_MODE=token, but there is no token; set {_TOKEN}, or have it in ~/.ray/auth_token")


def _no_node(where: str) -> ClusterError:
    return ClusterError(
        f"{where}: the cluster is there, but this machine is none of its nodes, and a driver must be on one; submit the job "
        "(ray job submit, raylway submit), or let this machine join by `ray start --address`"
    )


def _token_source() -> str:
    return next((name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)), "~/.ray/auth_token")


# ---- while connected


class Watch:
    """Asks the control plane at `address` and this machine's raylet at `raylet` (host:port) whether they are there, until one is not."""

    def __init__(self, address: str, *, local: bool, raylet: str | None = None) -> None:
        self._names = {address: "the cluster's control plane (GCS)"}
        self._patience_seconds = {address: _LOCAL_PATIENCE_SECONDS if local else _PATIENCE_SECONDS}
        if raylet:
            self._names[raylet] = "this machine's own node of the cluster (its raylet)"
            self._patience_seconds[raylet] = _RAYLET_PATIENCE_SECONDS
        self.lost, self._gone = False, address
        self._over = threading.Event()
        threading.Thread(target=self._run, name="control plane", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def gone(self) -> bool:
        """True if one of them does not answer now."""
        for address in self._names:
            if _silent(address):
                self._gone = address
                return True
        return False

    def explains(self, error: BaseException) -> bool:
        """True if the loss of the cluster is what ended the work: by our own interrupt, or by an error while nobody listens."""
        return self.lost or (isinstance(error, Exception) and self.gone())

    def error(self) -> ClusterError:
        return ClusterError(f"{self._names[self._gone]} at {self._gone} is gone; what was saved stands")

    def _run(self) -> None:
        silent_seconds = dict.fromkeys(self._names, 0.0)
        while not self._over.wait(_ASK_SECONDS):
            for address in self._names:
                silent_seconds[address] = silent_seconds[address] + _ASK_SECONDS if _silent(address) else 0.0
                if silent_seconds[address] >= self._patience_seconds[address] and not self._over.is_set():
                    self._gone, self.lost = address, True
                    self.gone()  # where both are gone, the control plane is to be named
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it, wherever it waits
                    return


def _silent(address: str) -> bool:
    """True if nobody listens at `address` (host:port) now."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ASK_SECONDS).close()
    except OSError:
        return True
    return False
