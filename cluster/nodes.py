"""The nodes of a cluster: what is free on each, which are about to be taken away, and where the workers of this driver are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Node:
    """A node that is there, with what is free on it."""

    id: str
    host: str
    cpus: float
    gpus: float
    leaving: bool
    """Whether it is about to be taken away: Ray places nothing more on it."""

    def __str__(self) -> str:
        return f"node {self.host} ({self.id[:8]})"


def fits(nodes: Iterable[tuple[float, float]], *, cpus: float, gpus: float) -> int:
    """How many workers of so many CPUs and GPUs fit onto nodes of (CPUs, GPUs): a worker is on one node, a share of a GPU on one GPU."""
    return sum(_fits(*node, cpus, gpus) for node in nodes)


def there() -> dict[str, Node]:
    """The nodes that the cluster believes in, by their id. One that died a moment ago is among them, for up to half a minute."""
    import ray

    # what Ray Train's own PreemptionWatcher asks; neither is public (Ray 2.60)
    leaving, free = ray._private.state.state.get_draining_nodes(), ray._private.state.available_resources_per_node()
    nodes = {}
    for node in ray.nodes():
        if node["Alive"]:
            left: Mapping[str, float] = free.get(node["NodeID"], {})
            nodes[node["NodeID"]] = Node(
                node["NodeID"], node["NodeManagerAddress"], left.get("CPU", 0), left.get("GPU", 0), node["NodeID"] in leaving
            )
    return nodes


def own_raylet() -> str | None:
    """Where the raylet listens that this process belongs to, as host:port."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in ray.nodes() if node["NodeID"] == own), None)


def room(nodes: Iterable[Node], *, cpus: float, gpus: float) -> int:
    """How many more workers fit onto what is free."""
    return fits(((node.cpus, node.gpus) for node in nodes if not node.leaving), cpus=cpus, gpus=gpus)


def members() -> dict[str, str]:
    """The worker processes of this driver's training: {actor's id: node's id}."""
    import ray
    from ray._private.state import actors

    mine: Any = ray.get_runtime_context()
    found = actors(job_id=ray.JobID.from_hex(mine.get_job_id()), actor_state_name="ALIVE")
    return {name: actor["Address"]["NodeID"] for name, actor in found.items() if actor["ActorClassName"] == "RayTrainWorker"}


def _fits(there_cpus: float, there_gpus: float, cpus: float, gpus: float) -> int:
    by_cpus = int(there_cpus / cpus + 1e-9)
    if not gpus:
        return by_cpus
    by_gpus = int(there_gpus / gpus + 1e-9) if gpus >= 1 else int(there_gpus + 1e-9) * int(1 / gpus + 1e-9)
    return min(by_cpus, by_gpus)
