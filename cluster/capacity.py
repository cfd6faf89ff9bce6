"""Number of workers and trials that fit on a cluster; a run that cannot fit is refused with the sum.

A worker is on one node, and a share of a GPU is a share of one GPU: 0.4 fits twice into each of two, and not five times into both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import ClusterError

_RANGE = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")
_ROUNDING = 1e-9  # 0.3 / 0.1 is 2.9999999999999996


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs that training may have, and the CPUs of the largest node."""

    cpus: int
    gpus: int
    node_cpus: int
    nodes: tuple[tuple[int, int], ...] = ()
    """(CPUs, GPUs) of each node; empty where there is only one, or the nodes to come are not known."""

    @property
    def each_node(self) -> tuple[tuple[int, int], ...]:
        return self.nodes or ((self.cpus, self.gpus),)


@dataclass(frozen=True)
class WorkerRange:
    """From `least` to `most` workers: `4`, or `1..4` to follow what the cluster has. 0: train in this process.

    What must not change with their number is worked out for the most.
    """

    least: int
    most: int

    def __bool__(self) -> bool:
        return self.most > 0

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else f"{self.most}"

    @property
    def elastic(self) -> bool:
        """True if their number may change."""
        return self.least < self.most

    @property
    def written(self) -> int | str:
        """As a setting, a number or a range."""
        return str(self) if self.elastic else self.most

    @classmethod
    def read(cls, written: Any) -> WorkerRange:
        """The range that a setting says. Raises ValueError unless it is a number or a range."""
        if isinstance(written, WorkerRange):
            return written
        match = None if isinstance(written, (bool, float)) else _RANGE.fullmatch(str(written))
        if not match:
            raise ValueError(f"{written!r} is neither a number of workers, such as 4, nor a range, such as 1..4")
        least, most = int(match[1]), int(match[2] or match[1])
        if match[2] and not 1 <= least < most:
            raise ValueError(f"{written!r}: a range goes from at least 1 worker up to more, such as 1..4")
        return cls(least, most)


class Scale(Protocol):
    """The settings `scale.*` of a run: its workers, and the CPUs and GPUs of each."""

    @property
    def workers(self) -> WorkerRange: ...
    @property
    def cpus(self) -> int | None: ...
    @property
    def gpus(self) -> float | None: ...


@dataclass(frozen=True)
class TrialSlots:
    """Resources of one trial, how many trials run at once, and the arithmetic behind that."""

    at_once: int
    workers: int
    cpus: int
    gpus: float
    arithmetic: str


def fits(nodes: Iterable[tuple[float, float]], *, cpus: float, gpus: float) -> int:
    """Number of workers of so many CPUs and GPUs that fit onto nodes of (CPUs, GPUs)."""
    return sum(_fits_node(*node, cpus, gpus) for node in nodes)


def worker_share(resources: Resources, scale: Scale, *, spare: int = 0) -> tuple[int, float]:
    """(CPUs, GPUs) of each worker, defaults filled in; `spare` CPUs are left to others. By default a worker has as many CPUs as it can,
    all of them being on nodes.

    Raises ClusterError with the arithmetic if not even the least number of workers can ever be there, or they could not be joined.
    """
    least, most = scale.workers.least, scale.workers.most
    each_gpus: float = scale.gpus if scale.gpus is not None else min(1, resources.gpus // max(least, 1))
    check_shared_gpus(workers=str(scale.workers), most=most, gpus=each_gpus)
    each_cpus = scale.cpus or _most_cpus(resources, max(most, 1), each_gpus, spare)
    for kind, each, total, left in (("CPU", each_cpus, resources.cpus, spare), ("GPU", each_gpus, resources.gpus, 0)):
        if least * each + left > total:
            wanted = f"scale.workers={least} x {counted(each, kind)}" + (f" + {left} to read data with" if left else "")
            raise ClusterError(f"{wanted} = {least * each + left:g}, but the cluster has {counted(total, kind)}")
    if (places := fits(resources.each_node, cpus=each_cpus, gpus=each_gpus)) < least:
        each_node = ", ".join(amounts(*node) for node in resources.each_node)
        raise ClusterError(f"scale.workers={least} x {amounts(each_cpus, each_gpus)}: nodes of {each_node} have room for {places} of them")
    return each_cpus, each_gpus


def trial_slots(resources: Resources, *, workers: int, cpus: int | None, gpus: float | None, most: int | None = None) -> TrialSlots:
    """Number of trials that fit at once. A trial of one worker runs in its Tune process; of several, that process holds no CPU itself.

    Raises ClusterError with the arithmetic if not even one fits, and where the workers of a trial cannot be joined.
    """
    members, cpus = max(workers, 1), cpus or 1
    gpus = (1.0 if resources.gpus else 0.0) if gpus is None else gpus
    check_shared_gpus(workers=str(members), most=members, gpus=gpus)
    fit, sums = [], []
    for kind, each, total in (("CPU", float(cpus), resources.cpus), ("GPU", gpus, resources.gpus)):
        if each:
            takes = f"{members} workers x {each:g} {kind}" if members > 1 else f"{each:g} {kind}"
            fit.append(_times(total, each) // members)
            sums.append(f"{total:g} {kind}s / ({takes}) = {fit[-1]}")
    at_once, arithmetic = min(fit), "; ".join(sums)
    if at_once < 1 or cpus > resources.node_cpus:
        largest = f"; the largest node has {resources.node_cpus} CPUs" if cpus > resources.node_cpus else ""
        raise ClusterError(f"not one trial fits: {arithmetic}{largest}; lower scale.workers, scale.cpus or scale.gpus")
    limited = min(at_once, most) if most else at_once
    limit = f", at most {most} (sweep.concurrent, trials)" if limited < at_once else ""
    return TrialSlots(limited, members, cpus, gpus, f"{arithmetic}{limit}: {limited} trial{'s' * (limited > 1)} at once")


def check_shared_gpus(*, workers: str, most: int, gpus: float) -> None:
    """Raises ClusterError where two of at most so many workers (`workers`, as written), of so many GPUs each, could be on one GPU.

    Ray Train joins workers that have a GPU by NCCL, whatever their share of one (ray.train.torch.config, 2.60), and NCCL refuses a second
    rank on a device ("Duplicate GPU detected") when the first sum is taken, in the middle of the start. Trials of one worker may share.
    """
    if most > 1 and 0 < gpus <= 0.5:
        raise ClusterError(
            f"scale.workers={workers} x scale.gpus={gpus:g}: two workers of a run cannot share a GPU, for NCCL joins one a GPU; "
            f"write scale.gpus=1, or scale.workers=1 scale.gpus={gpus:g}"
        )


def amounts(cpus: float, gpus: float) -> str:
    """CPUs and GPUs in words: `2 CPUs and 1 GPU`."""
    return counted(cpus, "CPU") + (f" and {counted(gpus, 'GPU')}" if gpus else "")


def counted(number: float, kind: str) -> str:
    """A number of CPUs or GPUs in words: `2 CPUs`."""
    return f"{number:g} {kind}{'s' * (number != 1)}"


def _most_cpus(resources: Resources, workers: int, gpus: float, spare: int) -> int:
    """The most CPUs that each of `workers` can have, or 1 if they do not all fit even so."""
    most = max(1, min((resources.cpus - spare) // workers, resources.node_cpus))
    return next((cpus for cpus in range(most, 1, -1) if fits(resources.each_node, cpus=cpus, gpus=gpus) >= workers), 1)


def _fits_node(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    by_cpus = int(node_cpus / cpus + _ROUNDING)
    return min(by_cpus, _times(node_gpus, gpus)) if gpus else by_cpus


def _times(total: float, each: float) -> int:
    """Number of times that `each` fits into `total` units, none of which is put together from parts of two."""
    return int(total / each + _ROUNDING) if each >= 1 else int(total + _ROUNDING) * int(1 / each + _ROUNDING)
