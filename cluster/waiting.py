"""Wait until a cluster of others has room, and say what is waited for and who holds it: once, and again when it changes.

The room is asked for as a placement group, as the workers themselves will ask for it: so Ray's own scheduler says when it is there, those
who came earlier go first, and a cluster that grows by itself sees that it is wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from cluster import nodes, ray_internals
from cluster.ray_internals import KINDS

_GLANCE_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_ENTRYPOINT_LETTERS = 60


def until_free(workers: int, *, cpus: float, gpus: float = 0, spare: int = 0, say: Callable[[str], None]) -> None:
    """Return when `workers` of so many CPUs and GPUs each, and `spare` CPUs, are free at once; they are free again then, for the taking."""
    from ray.util import placement_group, remove_placement_group

    each = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    group = placement_group([each] * max(workers, 1) + [{"CPU": 1.0}] * spare, strategy="PACK")
    try:
        if group.wait(_GLANCE_SECONDS):
            return
        wanted = " + ".join(
            [f"{max(workers, 1)} worker{'s' * (workers > 1)} x {_amounts(each)}", *([f"{spare} CPU to read with"] * bool(spare))]
        )
        said = None
        while not group.wait(_LOOK_SECONDS):
            now = f"waiting for {wanted}: {state()}"
            if now != said:
                say(now)
            said = now
        if said:
            say(f"got {wanted}")
    finally:
        remove_placement_group(group)


def state() -> str:
    """What is free, and which jobs hold the rest: `1 of 4 CPUs free; 3 CPUs held by job 02000000 (python -m pipelines train lstm)`.

    What is left on a node that is about to be taken away is not free: nothing more is placed there, and it is named.
    """
    import ray

    there, known = ray.cluster_resources(), nodes.there().values()
    staying = [node for node in known if not node.leaving]
    free = {"CPU": sum(node.cpus for node in staying), "GPU": sum(node.gpus for node in staying)}
    counts = ", ".join(f"{free[kind]:g} of {there[kind]:g} {kind}s free" for kind in KINDS if there.get(kind))
    held = [f"{_amounts(amounts)} held by {_described(job)}" for job, amounts in sorted(holders().items())]
    leaving = [f"{node} is about to be taken away" for node in known if node.leaving]
    return "; ".join([counts or "no node has CPUs", *held, *leaving])


def holders() -> dict[str, dict[str, float]]:
    """Job -> what its actors and placement groups hold, by kind of resource, as the control plane knows it."""
    found: dict[str, Counter[str]] = {}
    for job, amounts in ray_internals.reservations():
        found.setdefault(job, Counter()).update(amounts)
    return {job: dict(amounts) for job, amounts in found.items() if any(amounts.values())}


def _described(job: str) -> str:
    program, *arguments = ray_internals.entrypoint(job).split() or [""]
    words = " ".join([program.rpartition("/")[2], *arguments])
    return f"job {job}" + (f" ({words[:_ENTRYPOINT_LETTERS]}{'…' * (len(words) > _ENTRYPOINT_LETTERS)})" if words else "")


def _amounts(amounts: Mapping[str, Any]) -> str:
    return " and ".join(f"{amounts[kind]:g} {kind}{'s' * (amounts[kind] != 1)}" for kind in KINDS if amounts.get(kind))
