"""How many trials fit onto a cluster at once, and how that is worked out."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.gpus import check_shared
from cluster.session import ClusterError, Resources


@dataclass(frozen=True)
class Room:
    """What one trial takes, how many fit at once, and how that was worked out."""

    at_once: int
    workers: int
    cpus: int
    gpus: float
    arithmetic: str


def room(resources: Resources, *, workers: int, cpus: int | None, gpus: float | None, most: int | None = None) -> Room:
    """How many trials fit at once. A trial of one worker runs in its Tune process; of several, that process holds no CPU itself.

    Raises ClusterError with the arithmetic if not even one fits, and where the workers of a trial cannot be joined.
    """
    members, cpus = max(workers, 1), cpus or 1
    gpus = (1.0 if resources.gpus else 0.0) if gpus is None else gpus
    check_shared(workers=members, gpus=gpus)
    fits, sums = [], []
    for kind, each, there in (("CPU", float(cpus), resources.cpus), ("GPU", gpus, resources.gpus)):
        if each:
            takes = f"{members} workers x {each:g} {kind}" if members > 1 else f"{each:g} {kind}"
            # a share of a GPU is of one GPU: 0.4 fits twice into each, five times into two only if they were one
            fit = int(there) * int(1 / each + 1e-9) // members if each < 1 else int(there / (members * each))
            fits.append(fit)
            sums.append(f"{there:g} {kind}s / ({takes}) = {fit}")
    at_once = min(fits)
    arithmetic = "; ".join(sums)
    if at_once < 1 or cpus > resources.node_cpus:
        largest = f"; the largest node has {resources.node_cpus} CPUs" if cpus > resources.node_cpus else ""
        raise ClusterError(f"not one trial fits: {arithmetic}{largest}; lower scale.workers, scale.cpus or scale.gpus")
    limited = min(at_once, most) if most else at_once
    limit = f", at most {most} (sweep.concurrent, trials)" if limited < at_once else ""
    return Room(limited, members, cpus, gpus, f"{arithmetic}{limit}: {limited} trial{'s' * (limited > 1)} at once")
