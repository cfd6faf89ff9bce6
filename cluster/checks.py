"""The checks of `raylway doctor`: what the nodes of a cluster answer against what training needs, each failure with its fix.

`examine` asks the nodes; the checks below it are functions of plain facts. Facts come from the nodes themselves (cluster.probes) and not
from ray.util.state, which knows neither disks nor clocks nor versions, and needs a dashboard, which a cluster may lack.
"""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import connection, nodes, probes, ray_internals, shared_storage
from cluster.nodes import Node
from cluster.session import Session, local_resources

PASS: Literal["PASS"] = "PASS"
WARN: Literal["WARN"] = "WARN"
FAIL: Literal["FAIL"] = "FAIL"
Status = Literal["PASS", "WARN", "FAIL"]

_ANSWER_SECONDS = 60.0
"""For a node to start a process and answer."""
_CLOCK_SECONDS, _CLOCK_TIMES, _SERVER_SECONDS = 10.0, 3, 10.0
_JOIN_SECONDS, _REDUCE_SECONDS = 90.0, 60.0
_SKEW_SECONDS = (1.0, 30.0)
_SLOW_MB_PER_SECOND = 100.0
_GIB = 1 << 30
_DISKS = (  # name, as it is called, free space below which is a warning and below which a failure (bytes, or a share of all), what mends it
    ("storage", "storage", (5 * _GIB, _GIB), "free the storage: raylway prepare --prune, or old runs"),
    # at 5 % Ray itself stops storing objects
    ("ray", "Ray's temporary folder", (0.10, 0.05), "free the disk of Ray's --temp-dir, or start the node with another"),
    (
        "shm",
        "/dev/shm",
        (_GIB // 2, _GIB // 8),
        "give the container more shared memory: docker run --shm-size=2g, or an emptyDir of medium Memory",
    ),
)


@dataclass(frozen=True)
class Check:
    """A line of the doctor: its subject, the node ('' for the cluster), what was found, and the fix where it is not PASS."""

    name: str
    node: str
    status: Status
    found: str
    fix: str = ""


def examine(session: Session, folder: Path | None, *, package: str, server: str | None, uri: str, allow_open: bool) -> Iterator[Check]:
    """Check the cluster and each of its nodes, none of which is waited for without end.

    `folder` is the storage (None: the driver cannot write it), `package` what nodes must be able to import, `server` the URL of the MLflow
    server's health (None: MLflow is a database) and `uri` its address without a password. Raises ClusterError if there is no cluster.
    """
    import ray

    session.ready()
    known = list(nodes.alive().values())
    asked = [node for node in known if not node.leaving]
    leaving = f", {len(known) - len(asked)} of them about to be taken away" if len(asked) < len(known) else ""
    yield Check("cluster", "", PASS, f"Ray {ray.__version__}, {len(known)} node{'s' * (len(known) != 1)}{leaving}")
    closed = not connection.is_open(ray.get_runtime_context().gcs_address)
    yield auth([node.host for node in asked], closed=closed, sent=ray_internals.sends_token(), allow_open=allow_open)
    facts, silent = probes.ask(asked, probes.facts, lambda node: (str(folder or "/"), package), seconds=_ANSWER_SECONDS)
    for node in asked:
        if why := silent.get(node.id):
            yield Check("answer", str(node), FAIL, why, "look at its raylet.log and whether the node is alive; then start it again")
    asked = [node for node in asked if node.id in facts]
    if not asked:
        return
    here = probes.facts(str(folder or "/"), package)["versions"]
    yield from (versions(node, facts[node.id]["versions"], here) for node in asked)
    yield from (code(node, facts[node.id], package) for node in asked)
    yield from (resources(node, facts[node.id], *_offered(session, node)) for node in asked)
    yield from (check for node in asked for check in disks(node, facts[node.id]["disks"]))
    yield from (clock(node, _clock_readings(node)) for node in asked)
    if folder:
        errors, silent = shared_storage.compare(folder, asked)
        yield from (storage(node, str(folder), errors.get(node.id) or silent.get(node.id, "")) for node in asked)
    if server:
        errors, silent = probes.ask(
            asked, probes.reaches, lambda node: (server, _SERVER_SECONDS), seconds=_SERVER_SECONDS + _ANSWER_SECONDS
        )
        yield from (mlflow(node, uri, silent.get(node.id) or errors.get(node.id, "")) for node in asked)
    if without := [str(node) for node in asked if not facts[node.id]["versions"]["torch"]]:
        yield Check("all-reduce", "", WARN, f"not tried: no torch on {', '.join(without)}", "install torch there")
    else:
        yield _all_reduced(asked)


def worst(checks: Sequence[Check]) -> Status:
    """The status of all checks together."""
    statuses = {check.status for check in checks}
    return FAIL if FAIL in statuses else WARN if WARN in statuses else PASS


# ---- checks of plain facts


def versions(node: Node, there: Mapping[str, str], here: Mapping[str, str]) -> Check:
    """python, ray and torch of a node against those of the driver. A patch release of Python may differ; what is pickled does not mind."""
    shown = ", ".join(f"{name} {version or 'missing'}" for name, version in there.items())
    if not (other := [name for name in here if there.get(name) != here[name]]):
        return Check("versions", str(node), PASS, shown)
    only_patch = other == ["python"] and there["python"].split(".")[:2] == here["python"].split(".")[:2]
    wanted = ", ".join(f"{name} {here[name] or 'missing'}" for name in other)
    fix = f"install {wanted} there: one image for all nodes"
    return Check("versions", str(node), WARN if only_patch else FAIL, f"{shown}; the driver has {wanted}", fix)


def code(node: Node, facts: Mapping[str, Any], name: str) -> Check:
    """The program's own code, as a task of this driver finds it on a node."""
    fix = "submit the job (raylway submit takes the code along), or install the repository on the node"
    found = f"{name} can be imported" if facts["package"] else f"{name} cannot be imported by what is started from here"
    return _graded("code", str(node), found, fix, warn=not facts["package"])


def resources(node: Node, facts: Mapping[str, Any], cpus: float, gpus: float) -> Check:
    """CPUs and GPUs that Ray offers of a node against its hardware; torch must be a build that can use its GPUs."""
    found = f"{cpus:g} CPUs and {gpus:g} GPUs offered, {facts['cores']} cores and {facts['gpus']} GPUs there"
    torch = facts["versions"]["torch"]
    status: Status = WARN
    if gpus > facts["gpus"]:
        status, fix = FAIL, "start the node with --num-gpus as many as nvidia-smi lists, or mend its driver"
    elif gpus and torch.endswith("+cpu"):
        status, found, fix = FAIL, f"{found}, but torch is {torch}", "install a torch built for CUDA there"
    elif facts["gpus"] > gpus:
        fix = "start the node without --num-gpus=0 if training is to have its GPUs"
    elif cpus > facts["cores"]:
        fix = "start the node with --num-cpus as many as there are: workers will share cores"
    else:
        status, fix = PASS, ""
    return Check("resources", str(node), status, found, fix)


def disks(node: Node, spaces: Mapping[str, tuple[int, int] | None]) -> list[Check]:
    """Free space of the storage, of Ray's temporary folder and of /dev/shm."""
    checks = []
    for name, called, limits, fix in _DISKS:
        if space := spaces.get(name):
            free, total = space
            warn, fail = (limit * total if limit < 1 else limit for limit in limits)
            found = f"{called}: {free / _GIB:,.1f} of {total / _GIB:,.1f} GiB free"
            checks.append(_graded("disk", str(node), found, fix, warn=free < warn, fail=free < fail))
    return checks


def clock(node: Node, readings: Sequence[tuple[float, float, float]]) -> Check:
    """A node's clock against the driver's, by (sent, reading, received): points are journalled with the time of where they are made, and
    MLflow orders by it. The shortest round trip is the most exact; half of it is the time that has passed, and the uncertainty."""
    if not readings:
        return Check("clock", str(node), FAIL, f"no answer within {_CLOCK_SECONDS:g} s", "see whether the node is alive")
    sent, reading, received = min(readings, key=lambda times: times[2] - times[0])
    skew, uncertainty = reading - (sent + received) / 2, (received - sent) / 2
    off = max(0.0, abs(skew) - uncertainty)
    found, fix = f"{skew:+.3f} s from the driver's, ± {uncertainty:.3f} s", "set the node's clock by NTP (chrony, systemd-timesyncd)"
    return _graded("clock", str(node), found, fix, warn=off > _SKEW_SECONDS[0], fail=off > _SKEW_SECONDS[1])


def auth(hosts: Iterable[str], *, closed: bool, sent: bool, allow_open: bool) -> Check:
    """Token authentication: without it, whoever reaches the ports of a cluster can run any code there (CVE-2023-48022)."""
    if closed:
        return Check("auth", "", PASS, "the cluster asks for a token" + (", and accepts ours" if sent else ""))
    outside = sorted({host for host in hosts if not _loopback(host)})
    fix = "start head and nodes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    if not outside:
        return Check("auth", "", WARN, "the cluster asks for no token, so whoever is on this machine can run code there", fix)
    found = f"the cluster asks for no token, and it is at {', '.join(outside[:3])}: whoever reaches it can run code there"
    return Check("auth", "", WARN if allow_open else FAIL, found, fix + ("" if allow_open else "; or, in a closed network, --allow-open"))


def mlflow(node: Node, uri: str, error: str) -> Check:
    """The MLflow server as a node reaches it; the driver of a submitted job may run on any node."""
    fix = "give the server an address that every node reaches (not 127.0.0.1) and let the nodes through its firewall"
    found = f"{uri} does not answer there: {error}" if error else f"{uri} answers"
    return _graded("mlflow", str(node), found, fix, fail=bool(error))


def storage(node: Node, folder: str, error: str) -> Check:
    """The storage as a node sees it."""
    fix = "storage= must be a path that all nodes share, such as one on NFS, and that they may write"
    found = error or "what the driver writes is seen there, and the other way round"
    return _graded("storage", str(node), f"{folder}: {found}", fix, fail=bool(error))


def all_reduce(backend: str, processes: int, seconds: Sequence[float], *, errors: Sequence[str] = ()) -> Check:
    """The network between the nodes, by the seconds of an all-reduce of each of probes.SIZES, or the errors of the processes.

    Bus bandwidth is that of nccl-tests (doc/PERFORMANCE.md), in MB/s (10^6 bytes): bytes / seconds x 2(n-1)/n for n processes. So it can
    be compared with the network's nominal bandwidth, however many processes there are.
    """
    found = f"{backend}, {processes} processes"
    if errors:
        fix = "let the nodes reach each other on all ports; where a node has several networks, set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME)"
        return Check("all-reduce", "", FAIL, f"{found}: {'; '.join(errors)}", fix)
    speeds = [size / took * 2 * (processes - 1) / processes / 1e6 for size, took in zip(probes.SIZES, seconds, strict=True)]
    shown = ", ".join(f"{speed:,.0f} MB/s at {size >> 20} MiB" for speed, size in zip(speeds, probes.SIZES, strict=True))
    fix = "this is less than 1 Gbit/s gives: gradients will take longer than computing them"
    return _graded("all-reduce", "", f"{found}, bus bandwidth {shown}", fix, warn=speeds[-1] < _SLOW_MB_PER_SECOND)


def _graded(name: str, node: str, found: str, fix: str, *, warn: bool = False, fail: bool = False) -> Check:
    status = FAIL if fail else WARN if warn else PASS
    return Check(name, node, status, found, "" if status == PASS else fix)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- questions to the nodes


def _offered(session: Session, node: Node) -> tuple[float, float]:
    """(CPUs, GPUs) that Ray offers of a node; a cluster started here offers each core twice, so there what training may have of it."""
    import ray

    if session.local:
        local = local_resources()
        return local.cpus, local.gpus
    [offer] = [each["Resources"] for each in ray.nodes() if each["NodeID"] == node.id]
    return offer.get("CPU", 0), offer.get("GPU", 0)


def _clock_readings(node: Node) -> list[tuple[float, float, float]]:
    """A few readings of a node's clock, each between the driver's times of asking and of the answer."""
    readings = []
    for _ in range(_CLOCK_TIMES):
        sent = time.time()
        answers, _ = probes.ask([node], probes.clock, seconds=_CLOCK_SECONDS)
        readings += [(sent, reading, time.time()) for reading in answers.values()]
    return readings


def _all_reduced(everyone: Sequence[Node]) -> Check:
    """The check of an all-reduce over one process a node, or two on the only one: by nccl where each has a GPU free now, else by gloo."""
    places = list(everyone) if len(everyone) > 1 else [*everyone, *everyone]
    backend = "nccl" if all(node.gpus >= len(places) // len(everyone) for node in everyone) else "gloo"
    port, silent = probes.ask(places[:1], probes.free_port, seconds=_JOIN_SECONDS)
    if silent:
        return all_reduce(backend, len(places), (), errors=[f"{places[0]}: {why}" for why in silent.values()])
    host = places[0].host
    meeting = f"tcp://{f'[{host}]' if ':' in host else host}:{port[places[0].id]}"
    references = {}
    for rank, node in enumerate(places):
        arguments = (meeting, rank, len(places), backend, _REDUCE_SECONDS)
        references[str(rank)] = probes.send(node, probes.all_reduce, *arguments, gpus=float(backend == "nccl"), alone=True)
    medians, silent = probes.gather(references, seconds=_JOIN_SECONDS + _REDUCE_SECONDS)
    errors = [f"{places[int(rank)]}: {why}" for rank, why in silent.items()]
    typical = [] if errors else [statistics.median(seconds) for seconds in zip(*medians.values(), strict=True)]
    return all_reduce(backend, len(places), typical, errors=errors)
