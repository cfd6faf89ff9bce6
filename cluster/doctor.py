"""Is a cluster fit to train on? What its nodes answered, held against what training needs: a verdict a line, each with what mends it.

Here are the judgements only, functions of plain facts; who asks is `examined` in cluster.examination, and what is asked cluster.probes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.allreduce_probe import Ring
from cluster.nodes import Node

PASS: Literal["PASS"] = "PASS"
WARN: Literal["WARN"] = "WARN"
FAIL: Literal["FAIL"] = "FAIL"
Status = Literal["PASS", "WARN", "FAIL"]

_GIB = 1 << 30
_STORAGE_BYTES = (5 * _GIB, 1 * _GIB)
_SHM_BYTES = (_GIB // 2, _GIB // 8)
_RAY_FREE = (0.10, 0.05)
_SKEW_SECONDS = (1.0, 30.0)
_SLOW_MB_PER_SECOND = 100.0


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, on which node ('' for the cluster), what was found, and what mends it where it is not fine."""

    name: str
    node: str
    status: Status
    found: str
    fix: str = ""


def versions(node: Node, there: Mapping[str, str], here: Mapping[str, str]) -> Check:
    """python, ray and torch of a node against those of the driver. A patch release of Python may differ; what is pickled does not mind."""
    shown = ", ".join(f"{name} {version or 'missing'}" for name, version in there.items())
    other = [f"{name} {here[name] or 'missing'}" for name in here if there.get(name) != here[name]]
    if not other:
        return Check("versions", str(node), PASS, shown)
    only_patch = _minor(there["python"]) == _minor(here["python"]) and all(there[name] == here[name] for name in here if name != "python")
    found = f"{shown}; the driver has {', '.join(other)}"
    return Check("versions", str(node), WARN if only_patch else FAIL, found, f"install {', '.join(other)} there: one image for all nodes")


def package(node: Node, facts: Mapping[str, Any], name: str) -> Check:
    """Whether a process of this driver finds the program's own code on a node."""
    if facts["package"]:
        return Check("code", str(node), PASS, f"{name} can be imported")
    fix = "submit the job (raylway submit takes the code along), or install the repository on the node"
    return Check("code", str(node), WARN, f"{name} cannot be imported by what is started from here", fix)


def resources(node: Node, facts: Mapping[str, Any], *, cpus: float, gpus: float) -> Check:
    """What Ray offers of a node against what is there; torch must be a build that can use its GPUs."""
    found = f"{cpus:g} CPUs and {gpus:g} GPUs offered, {facts['cores']} cores and {facts['gpus']} GPUs there"
    torch = facts["versions"].get("torch", "")
    if gpus > facts["gpus"]:
        return Check("resources", str(node), FAIL, found, "start the node with --num-gpus as many as nvidia-smi lists, or mend its driver")
    if gpus and torch.endswith("+cpu"):
        return Check("resources", str(node), FAIL, f"{found}, but torch is {torch}", "install a torch built for CUDA there")
    if facts["gpus"] > gpus:
        return Check("resources", str(node), WARN, found, "start the node without --num-gpus=0 if training is to have its GPUs")
    if cpus > facts["cores"]:
        return Check("resources", str(node), WARN, found, "start the node with --num-cpus as many as there are: workers will share cores")
    return Check("resources", str(node), PASS, found)


def disk(node: Node, disks: Mapping[str, tuple[int, int] | None]) -> list[Check]:
    """Free space where runs are kept (5 and 1 GiB), of Ray's temporary folder (10 and 5 %: at 5 % Ray itself stops storing objects) and of
    /dev/shm (512 and 128 MiB): less than the first is a warning, than the second a failure."""
    checks = []
    for name, limits, fix in (
        ("storage", _STORAGE_BYTES, "free the storage: raylway prepare --prune, or old runs"),
        ("ray", _RAY_FREE, "free the disk of Ray's --temp-dir, or start the node with another"),
        ("shm", _SHM_BYTES, "give the container more shared memory: docker run --shm-size=2g, or an emptyDir of medium Memory"),
    ):
        space = disks.get(name)
        if space is None:
            continue
        free, total = space
        warn, fail = (limit * total if name == "ray" else limit for limit in limits)
        status = FAIL if free < fail else WARN if free < warn else PASS
        found = f"{_called(name)}: {free / _GIB:,.1f} of {total / _GIB:,.1f} GiB free"
        checks.append(Check("disk", str(node), status, found, "" if status == PASS else fix))
    return checks


def clock(node: Node, skew: float, uncertainty: float) -> Check:
    """A node's clock against the driver's: points are journalled with the time of where they are made, and MLflow orders by it."""
    off = max(0.0, abs(skew) - uncertainty)
    status = FAIL if off > _SKEW_SECONDS[1] else WARN if off > _SKEW_SECONDS[0] else PASS
    found = f"{skew:+.3f} s from the driver's, ± {uncertainty:.3f} s"
    return Check("clock", str(node), status, found, "" if status == PASS else "set the node's clock by NTP (chrony, systemd-timesyncd)")


def skew(sent: float, said: float, received: float) -> tuple[float, float]:
    """(how far a clock that said `said` is ahead of ours, how far that may be wrong): half the round trip each way."""
    return said - (sent + received) / 2, (received - sent) / 2


def auth(hosts: Iterable[str], *, asked: bool, sent: bool, allow_open: bool) -> Check:
    """Whether the cluster lets in whoever reaches its ports: they can run any code there (CVE-2023-48022)."""
    if asked:
        return Check("auth", "", PASS, "the cluster asks for a token" + (", and took ours" if sent else ""))
    outside = sorted({host for host in hosts if not _loopback(host)})
    fix = "start head and nodes with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    if not outside:
        return Check("auth", "", WARN, "no token is asked for, so whoever is on this machine can run code there", fix)
    found = f"no token is asked for, and it is at {', '.join(outside[:3])}: whoever reaches it can run code there"
    return Check("auth", "", WARN if allow_open else FAIL, found, fix + ("" if allow_open else "; or, in a closed network, --allow-open"))


def mlflow(node: Node, uri: str, wrong: str) -> Check:
    """Whether a node reaches the MLflow server; the driver of a submitted job may run on any."""
    if not wrong:
        return Check("mlflow", str(node), PASS, f"{uri} answers")
    fix = "give the server an address that every node reaches (not 127.0.0.1) and let the nodes through its firewall"
    return Check("mlflow", str(node), FAIL, f"{uri} does not answer there: {wrong}", fix)


def storage(node: Node, folder: str, wrong: str) -> Check:
    """Whether a node sees the storage that the driver sees."""
    if not wrong:
        return Check("storage", str(node), PASS, f"{folder}: what the driver writes is seen there, and the other way round")
    fix = "storage= must be a path that all nodes share, such as one on NFS, and that they may write"
    return Check("storage", str(node), FAIL, f"{folder}: {wrong}", fix)


def all_reduce(ring: Ring) -> Check:
    """Whether workers of all nodes meet, and whether the network between them is one."""
    if ring.wrong:
        fix = "let the nodes reach each other on all ports; where a node has several networks, set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME)"
        return Check("all-reduce", "", FAIL, f"{ring.backend}, {ring.processes} processes: {'; '.join(ring.wrong)}", fix)
    slow = ring.bandwidth[-1] < _SLOW_MB_PER_SECOND
    fix = "this is less than 1 Gbit/s gives: gradients will take longer than computing them" if slow else ""
    return Check("all-reduce", "", WARN if slow else PASS, str(ring), fix)


def worst(checks: Sequence[Check]) -> Status:
    """The verdict of all checks together."""
    found = {check.status for check in checks}
    return FAIL if FAIL in found else WARN if WARN in found else PASS


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _called(disk: str) -> str:
    return {"storage": "storage", "ray": "Ray's temporary folder", "shm": "/dev/shm"}[disk]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
