"""Several nodes: raylets of one machine make a cluster that is not this process's own, and nodes of it come, go and are announced to go."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from cluster import nodes
from pipelines import config
from pipelines.folder import RunFolder
from pipelines.screen import Screen
from pipelines.threads import in_background
from pipelines.tracking.journal import read
from pipelines.train import train

SHORT = ("train.steps=40", "train.checkpoint_every=10", "train.log_every=1", "scale.threads=1")
LONG = ("train.steps=3000", "train.checkpoint_every=500", "train.log_every=10", "train.batch=8", "scale.threads=1")
"""Long enough for something to happen in between."""
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
        return list(nodes.members().values())

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
    environment = {"RAY_ADDRESS": "set below", "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
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


@pytest.fixture
def two():
    with made(2) as cluster:
        yield cluster


def run(storage, *settings, recipe="cnn", screen=None):
    return train(config.load(recipe, [f"storage={storage}", "track.register=false", *settings]), screen=screen or Screen())


def losses(storage, name, recipe="cnn"):
    return [point.metrics["loss"] for point in read(RunFolder(storage / recipe / name).journal) if "loss" in point.metrics]


def until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained_alone(storage, recipe, *settings):
    return run(storage, *settings, "scale.workers=0", f"name=alone-{recipe}", recipe=recipe)


@pytest.mark.usefixtures("two")
def test_two_nodes_follow_the_curve_of_one_process(tracked):
    alone = trained_alone(tracked, "cnn", *SHORT)
    result = run(tracked, *SHORT, "scale.workers=2", "name=on-two-nodes")
    assert result["workers"] == 2
    assert losses(tracked, "on-two-nodes") == pytest.approx(losses(tracked, "alone-cnn"), abs=1e-5)
    assert result["metrics"]["test/accuracy"] == alone["metrics"]["test/accuracy"]


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_a_recurrent_network_does_as_well(tracked):
    trained_alone(tracked, "lstm", *SHORT)
    run(tracked, *SHORT, "scale.workers=2", "name=lstm-on-two-nodes", recipe="lstm")
    assert losses(tracked, "lstm-on-two-nodes", "lstm") == pytest.approx(losses(tracked, "alone-lstm", "lstm"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cnn", "lstm"])
def test_four_nodes_follow_the_curve_of_one_process(tracked, recipe):
    run(tracked, *SHORT, "scale.workers=0", f"name=one-of-{recipe}", recipe=recipe)
    with made(4):
        assert run(tracked, *SHORT, "scale.workers=4", f"name=four-of-{recipe}", recipe=recipe)["workers"] == 4
    assert losses(tracked, f"four-of-{recipe}", recipe) == pytest.approx(losses(tracked, f"one-of-{recipe}", recipe), abs=1e-5)


def trains(storage, name, points):
    """Whether the run has journalled so many points of its loss."""
    return lambda: (storage / "cnn" / name / "journal.jsonl").exists() and len(losses(storage, name)) >= points


@pytest.mark.slow
def test_a_node_is_killed_and_another_joins_and_the_bits_are_the_same(tracked):
    with made(2) as cluster:
        undisturbed = run(tracked, *LONG, "scale.workers=2", "name=undisturbed")
        screen = Spoken()
        going = in_background(lambda: run(tracked, *LONG, "scale.workers=2", "name=killed", screen=screen))
        until(trains(tracked, "killed", 60))
        cluster.kill(cluster.workers()[0])
        cluster.add()
        result = going.result(timeout=300)
    assert screen.heard("lost worker")
    assert result["resumed_from_step"] >= 500
    assert result["weights_sha256"] == undisturbed["weights_sha256"]


@pytest.mark.slow
def test_a_node_that_is_announced_to_go_costs_no_step_and_no_retry(tracked):
    undisturbed = run(tracked, *LONG, "scale.workers=0", "name=not-announced")
    with made(2) as cluster:
        screen = Spoken()
        going = in_background(lambda: run(tracked, *LONG, "scale.workers=1", "scale.retries=0", "name=announced", screen=screen))
        until(trains(tracked, "announced", 20))
        [before] = cluster.workers()
        cluster.announce(before)
        result = going.result(timeout=300)
    [said] = screen.heard("is about to be taken away")
    assert before[:8] in said
    assert f"checkpoint at step {result['resumed_from_step']:,}" in said
    assert result["weights_sha256"] == undisturbed["weights_sha256"]


@pytest.mark.slow
def test_an_elastic_run_takes_more_workers_when_they_come_and_goes_on_with_fewer(tracked):
    longer = ("train.steps=6000", *LONG[1:])
    run(tracked, *longer, "train.micro_batch=4", "scale.workers=0", "name=rigid")
    with made(1) as cluster:
        screen = Spoken()
        going = in_background(lambda: run(tracked, *longer, "scale.workers=1..2", "name=elastic", screen=screen))
        until(trains(tracked, "elastic", 10))
        assert len(cluster.workers()) == 1
        cluster.add()
        until(lambda: len(cluster.workers()) == 2)
        until(trains(tracked, "elastic", len(losses(tracked, "elastic")) + 10))
        cluster.kill(cluster.workers()[0])
        going.result(timeout=300)
    assert screen.heard("room for 2 workers")
    assert screen.heard("lost worker")
    assert [text[:1] for text in screen.heard("of scale.workers=1..2")][0::2] == ["1", "1"]
    assert losses(tracked, "elastic") == pytest.approx(losses(tracked, "rigid"), abs=1e-5)
