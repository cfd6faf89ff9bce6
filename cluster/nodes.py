"""The nodes of a cluster: what is free on each, which are about to be taken away, and where the workers of this driver are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster import ray_internals


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


def there() -> dict[str, Node]:
    """The nodes that the cluster believes in, by their id. One that died a moment ago is among them, for up to half a minute."""
    import ray

    leaving, free = ray_internals.draining_nodes(), ray_internals.free_by_node()
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


def members() -> dict[str, str]:
    """The worker processes of this driver's training: {actor's id: node's id}."""
    return {name: node for name, (kind, node) in ray_internals.living_actors(of_this_driver=True).items() if kind == "RayTrainWorker"}
