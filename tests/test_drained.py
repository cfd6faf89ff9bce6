"""Nodes that are announced to go, by `ray drain-node` or by SIGTERM as Kubernetes sends it: no step and no retry is lost, and where there
is no room elsewhere the run says so and waits."""

from __future__ import annotations

import re
import signal

import pytest

from cluster import nodes
from pipelines.process import in_background
from pipelines.run_record import RunFolder
from tests.cli import finish, raylway, start, until
from tests.head import head
from tests.nodes import ALONE, LONG, Spoken, made, run, trains


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_node_is_announced_to_go_with_nowhere_to_go_and_the_run_waits_for_another(tracked, workers):
    settings, length = (f"scale.workers={workers}", "scale.retries=0"), ALONE if workers == 1 else LONG
    name, waits = f"drained-{workers}", f"waiting for {workers} worker{'s' * (workers > 1)} x 1 CPU: "
    with made(workers) as cluster:
        undisturbed = run(tracked, *length, f"scale.workers={workers}", f"name=undrained-{workers}")
        screen = Spoken()
        going = in_background(lambda: run(tracked, *length, *settings, f"name={name}", screen=screen))
        until(trains(tracked, name, 20))
        leaving = cluster.workers()[0]
        cluster.announce(leaving)
        until(lambda: screen.heard(waits))
        cluster.add()
        result = going.result(timeout=300)
    [said] = screen.heard("going on elsewhere")
    assert said.endswith(
        f"({leaving[:8]}) is about to be taken away: checkpoint at step {result['resumed_from_step']:,}, going on elsewhere"
    )
    assert not screen.heard("lost worker")
    assert result["weights_sha256"] == undisturbed["weights_sha256"]


class Held:
    """What another holds."""


@pytest.mark.slow
def test_what_is_left_on_a_node_that_is_about_to_go_is_not_free():
    import ray

    with made(1) as cluster:
        holder = ray.remote(num_cpus=0.25)(Held).remote()  # keeps the node: an idle one ends at once
        ray.get(holder.__ray_ready__.remote())
        assert nodes.occupancy().startswith("0.75 of 1 CPUs free; 0.25 CPUs held by job ")
        [leaving] = [name for name, node in nodes.alive().items() if node.cpus]
        cluster.announce(leaving)
        until(lambda: nodes.alive()[leaving].leaving)
        assert nodes.occupancy().startswith("0 of 1 CPUs free; 0.25 CPUs held by job ")
        assert nodes.occupancy().endswith(f"({leaving[:8]}) is about to be taken away")


@pytest.mark.slow
def test_a_node_gets_sigterm_and_the_run_goes_on_elsewhere_without_a_retry(tmp_path):
    """As a pod that is deleted, and most machines that are taken away: Ray makes a notice of it, of 30 seconds unless told otherwise."""
    words = ["train", "cnn", *ALONE, "track.register=false", f"storage={tmp_path}", "--json"]
    code, undisturbed, err = raylway(*words, "scale.workers=0", "name=undisturbed", cwd=tmp_path)
    assert code == 0, err
    folder = RunFolder(tmp_path / "cnn" / "moved")
    with head(cpus=0) as cluster:
        for _ in range(2):
            cluster.join(cpus=1)
        running = start(
            [*words, "scale.workers=1", "scale.retries=0", "name=moved"],
            cwd=tmp_path,
            RAY_ADDRESS=cluster.address,
            RAY_AUTH_MODE="disabled",
        )
        until(lambda: list(folder.checkpoints.glob("step-*/MANIFEST.json")), running)
        [node] = [raylet for raylet in cluster.processes("raylet") if any("RayTrain" in child.name() for child in raylet.children())]
        command = node.parent()
        assert "start" in command.cmdline()
        command.send_signal(signal.SIGTERM)
        code, told, err = finish(running)
        command.wait(timeout=60)
    assert code == 0, err
    [step] = re.findall(r"is about to be taken away: checkpoint at step ([\d,]+), going on elsewhere", err)
    assert told["resumed_from_step"] == int(step.replace(",", ""))
    assert "lost worker" not in err
    assert told["weights_sha256"] == undisturbed["weights_sha256"]
