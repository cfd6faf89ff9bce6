"""Is a cluster there, and does it let us in? Asked in seconds, before Ray is told to connect.

Ray itself asks an address that nobody answers at for ever, and a wrong token for 20 s before it says that it "failed to connect" (2.60).
"""

from __future__ import annotations

import os
import re
import time

from cluster import ClusterError, ray_internals

ANSWER_SECONDS = 10.0
_NODE_SECONDS = 10.0
_TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it)"
_SAME = "install the same versions on the driver and every node"
_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def check(address: str) -> None:
    """Ask the control plane at `address` (host:port) whether it is there, lets us in, and is of our version. Raises ClusterError."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        if address.startswith("ray://"):
            return  # Ray Client: another protocol, with a timeout of its own
        raise ClusterError(
            f"RAY_ADDRESS={address} is where jobs are submitted (raylway submit --address {address} -- …); "
            "here the control plane is asked: host:6379"
        )
    there = _alive(address)
    import ray

    if there and there != ray.__version__:
        raise ClusterError(f"RAY_ADDRESS={address}: the cluster runs Ray {there}, this is Ray {ray.__version__}; {_SAME}")
    if not _has_node():
        raise _no_node(f"RAY_ADDRESS={address}")


def refused(where: str, *, presented: bool | None = None) -> ClusterError:
    """The cluster wants a token, and this process has none or another one. No token is ever in the sentence."""
    if presented is None:
        presented = token_mode()
    if not presented:
        return ClusterError(f"{where}: the cluster asks for a token, and none was sent; set {_TOKEN}")
    return ClusterError(f"{where}: the cluster does not accept the token of {_source()}; set {_TOKEN} to the token of that cluster")


def no_token() -> ClusterError:
    """Tokens are on in this process, and it has none."""
    return ClusterError(f"RAY_AUTH_MODE=token, but there is no token; set {_TOKEN}, or have it in ~/.ray/auth_token")


def token_mode() -> bool:
    """Whether this process sends a token."""
    return ray_internals.sends_token()


def send_token_if_there() -> bool:
    """Send a token from now on, if one is there and RAY_AUTH_MODE does not say otherwise, as ray.init does by itself.

    Whether one is sent. Raises ClusterError if tokens are on and there is none.
    """
    on, there = ray_internals.enable_token()
    if on and not there:
        raise no_token()
    return on


def lets_anyone_in(address: str) -> bool:
    """Whether the control plane at `address` (host:port) answers to who has no token."""
    import grpc

    try:
        ray_internals.control_plane_version(address, with_token=False, seconds=ANSWER_SECONDS)
    except grpc.RpcError:
        return False
    return True


def translated(error: BaseException, where: str) -> ClusterError:
    """What Ray said when it could not connect, as one sentence."""
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
    """Ray's version of the cluster there, or ''."""
    import grpc

    where = f"RAY_ADDRESS={address}"
    sent = send_token_if_there()
    try:
        version = ray_internals.control_plane_version(address, with_token=True, seconds=ANSWER_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise refused(where, presented=sent) from None
        said = "no answer in time" if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else _short(error.details())
        raise ClusterError(
            f"{where}: no Ray control plane answers there ({said}); is the cluster up, and is the port that of its head?"
        ) from None
    if sent and lets_anyone_in(address):
        raise ClusterError(
            f"{where}: the cluster asks for no token, but one is there ({_source()}), and Ray would then refuse what its nodes say; "
            "set RAY_AUTH_MODE=disabled, or start the cluster with RAY_AUTH_MODE=token"
        )
    return version


def _has_node() -> bool:
    """Whether a raylet runs on this machine, or does within some seconds: one may be starting. Ray itself looks for a minute (2.60)."""
    deadline = time.monotonic() + _NODE_SECONDS
    while not (found := ray_internals.raylets_here()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _no_node(where: str) -> ClusterError:
    return ClusterError(
        f"{where}: the cluster is there, but this machine is none of its nodes, and a driver must be on one; submit the job "
        "(ray job submit, raylway submit), or let this machine join by `ray start --address`"
    )


def _source() -> str:
    """Where this process has its token from."""
    return next((name for name in _SOURCES if os.environ.get(name)), "~/.ray/auth_token")


def _short(details: str | None) -> str:
    return (details or "no reason given").strip().splitlines()[0][-120:]
