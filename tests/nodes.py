"""Several nodes: raylets of one machine make a cluster that is not this process's own, and nodes of it come, go and are announced to go."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from cluster import nodes
from cluster.ray_internals import SESSION_SWITCHES
from pipelines import config
from pipelines.run_record import RunFolder
from pipelines.screen import Screen
from pipelines.tracking.journal import read
from pipelines.verbs.train import train

SHORT = ("train.steps=40", "train.checkpoint_every=10", "train.log_every=1", "scale.threads=1")
LONG = ("train.steps=3000", "train.checkpoint_every=500", "train.log_every=10", "train.batch=8", "scale.threads=1")
"""Long enough for something to happen in between."""
ALONE = ("train.steps=9000", *LONG[1:])
"""The same for one worker, who waits for nobody."""
TAKING = (*LONG, "train.micro_batch=2")
"""The cut of four workers, however many there are."""


class Nodes:
    """A cluster of raylets on this machine; its head has no CPUs for workers, as many head nodes have none."""

    def __init__(self, count: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 200 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(**self._worker) for _ in range(count)]
        ray.init(address=self._cluster.address, logging_level="ERROR")

    _worker = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}  # noqa: RUF012

    @property
    def address(self) -> str:
        return self._cluster.address

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self) -> None:
        """Only in the main thread: Ray sets signal handlers."""
        self._nodes.append(self._cluster.add_node(**self._worker))

    def kill(self, node_id: str) -> None:
        """As kill -9 of all that runs on the node."""
        [node] = [node for node in self._nodes if node.node_id == node_id]
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def announce(self, node_id: str, seconds: int = 60) -> None:
        """As a cloud does before it takes a machine away."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
        ray = Path(os.sys.executable).with_name("ray")
        subprocess.run([ray, "drain-node", "--address", self.address, "--node-id", node_id, *reason], check=True, capture_output=True)

    def workers(self) -> list[str]:
        """The nodes that training runs on now."""
        return list(nodes.training_workers().values())

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


class Spoken(Screen):
    """A screen that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
        super().say(text)

    def heard(self, words: str) -> list[str]:
        return [text for text in self.said if words in text]


@contextlib.contextmanager
def made(count: int):
    """A cluster of `count` nodes of one CPU, to which this process belongs."""
    noticed_soon = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    # its processes at the usual niceness of 15 took a minute each to start beside another process of tests
    environment = {"RAY_ADDRESS": "set below", "RAY_worker_niceness": SESSION_SWITCHES["RAY_worker_niceness"], **noticed_soon}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update({name: value for name, value in environment.items() if name != "RAY_ADDRESS"})
    cluster = None
    try:
        cluster = Nodes(count)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        if cluster:
            cluster.close()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def run(storage, *settings, recipe="cnn", screen=None):
    return train(config.load(recipe, [f"storage={storage}", "track.register=false", *settings]), screen=screen or Screen())


def losses(storage, name, recipe="cnn"):
    return [point.metrics["loss"] for point in read(RunFolder(storage / recipe / name).journal) if "loss" in point.metrics]


def trains(storage, name, points):
    """Whether the run has journalled so many points of its loss."""
    return lambda: (storage / "cnn" / name / "journal.jsonl").exists() and len(losses(storage, name)) >= points
