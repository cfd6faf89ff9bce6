"""The nodes of a cluster: the CPUs and GPUs free on each, the jobs that hold the rest, and waiting until there is room.

Room is asked for by a placement group, as the workers themselves will ask for it: so Ray's own scheduler says when it is there, those who
came earlier go first, and the autoscaler sees that it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster import ray_internals
from cluster.capacity import counted
from cluster.ray_internals import KINDS

_GLANCE_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_ENTRYPOINT_LETTERS = 60


@dataclass(frozen=True)
class Node:
    """A living node, with the CPUs and GPUs that are free on it."""

    id: str
    host: str
    cpus: float
    gpus: float
    leaving: bool
    """True if it is being drained: Ray places nothing more on it."""

    def __str__(self) -> str:
        return f"node {self.host} ({self.id[:8]})"


def alive() -> dict[str, Node]:
    """The living nodes by their id. A node that has died is among them for up to half a minute."""
    import ray

    free, leaving = ray_internals.free_by_node()
    nodes = {}
    for node in ray.nodes():
        if node["Alive"]:
            id, left = node["NodeID"], free.get(node["NodeID"], {})
            nodes[id] = Node(id, node["NodeManagerAddress"], left.get("CPU", 0), left.get("GPU", 0), id in leaving)
    return nodes


def own_raylet() -> str | None:
    """The address of the raylet that this process belongs to, as host:port."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in ray.nodes() if node["NodeID"] == own), None)


def training_workers() -> dict[str, str]:
    """The worker processes of this driver's training: {actor's id: node's id}."""
    return {name: node for name, (kind, node) in ray_internals.living_actors_of_driver().items() if kind == "RayTrainWorker"}


def until_free(workers: int, *, cpus: float, gpus: float = 0, spare: int = 0, say: Callable[[str], None]) -> None:
    """Wait until `workers` of so many CPUs and GPUs each, and `spare` CPUs, are free at once; nothing is held on return.

    Says what is waited for and which jobs hold it: once, and again when it changes.
    """
    from ray.util import placement_group, remove_placement_group

    each = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    group = placement_group([each] * max(workers, 1) + [{"CPU": 1.0}] * spare, strategy="PACK")
    try:
        if group.wait(_GLANCE_SECONDS):
            return
        reader = [f"{spare} CPU to read with"] * bool(spare)
        wanted = " + ".join([f"{max(workers, 1)} worker{'s' * (workers > 1)} x {_in_words(each)}", *reader])
        before = None
        while not group.wait(_LOOK_SECONDS):
            now = f"waiting for {wanted}: {occupancy()}"
            if now != before:
                say(now)
            before = now
        if before:
            say(f"got {wanted}")
    finally:
        remove_placement_group(group)


def occupancy() -> str:
    """Free CPUs and GPUs, and jobs that hold the rest: `1 of 4 CPUs free; 3 CPUs held by job 02000000 (python -m pipelines train lstm)`.

    Those of a node that is being drained are not free, and it is named. Those that are neither free nor held by an actor or a placement
    group are named too: tasks have them, or nobody whom Ray could name.
    """
    import ray

    total, known, held = ray.cluster_resources(), alive().values(), ray_internals.reservations()
    free = {"CPU": [(node.cpus, node.leaving) for node in known], "GPU": [(node.gpus, node.leaving) for node in known]}
    counts = ", ".join(
        f"{sum(left for left, leaving in free[kind] if not leaving):g} of {total[kind]:g} {kind}s free" for kind in KINDS if total.get(kind)
    )
    jobs = [f"{_in_words(amounts)} held by {_described(job)}" for job, amounts in sorted(held.items())]
    unheld = {kind: total.get(kind, 0) - sum(left for left, _ in free[kind]) - sum(job[kind] for job in held.values()) for kind in KINDS}
    tasks = [f"{text} held by no actor and no placement group: by running tasks, or lost to Ray"] if (text := _in_words(unheld)) else []
    leaving = [f"{node} is about to be taken away" for node in known if node.leaving]
    return "; ".join([counts or "no node has CPUs", *jobs, *tasks, *leaving])


def _described(job: str) -> str:
    program, *arguments = ray_internals.entrypoint(job).split() or [""]
    words = " ".join([program.rpartition("/")[2], *arguments])
    return f"job {job}" + (f" ({words[:_ENTRYPOINT_LETTERS]}{'…' * (len(words) > _ENTRYPOINT_LETTERS)})" if words else "")


def _in_words(amounts: Mapping[str, Any]) -> str:
    return " and ".join(counted(amounts[kind], kind) for kind in KINDS if amounts.get(kind, 0) > 1e-4)
