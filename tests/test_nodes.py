"""On several nodes a run has the curve of one process, and nodes that are killed or announced to go cost it none of its bits."""

from __future__ import annotations

import pytest

from pipelines.process import in_background
from tests.cli import until
from tests.nodes import ALONE, LONG, SHORT, Spoken, losses, made, run, trains


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cnn", "lstm"])
def test_four_nodes_follow_the_curve_of_one_process(tracked, recipe):
    run(tracked, *SHORT, "scale.workers=0", f"name=one-of-{recipe}", recipe=recipe)
    with made(4):
        assert run(tracked, *SHORT, "scale.workers=4", f"name=four-of-{recipe}", recipe=recipe)["workers"] == 4
    assert losses(tracked, f"four-of-{recipe}", recipe) == pytest.approx(losses(tracked, f"one-of-{recipe}", recipe), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_node_is_killed_and_another_joins_and_the_bits_are_the_same(tracked, strategy):
    name, settings = f"killed-{strategy}", (*LONG, "scale.workers=2", f"scale.strategy={strategy}")
    with made(2) as cluster:
        undisturbed = run(tracked, *settings, f"name=undisturbed-{strategy}")
        screen = Spoken()
        going = in_background(lambda: run(tracked, *settings, f"name={name}", screen=screen))
        until(trains(tracked, name, 60))
        cluster.kill(cluster.workers()[0])
        cluster.add()
        result = going.result(timeout=300)
    assert screen.heard("lost worker")
    assert result["resumed_from_step"] >= 500
    assert result["weights_sha256"] == undisturbed["weights_sha256"]


@pytest.mark.slow
def test_a_node_that_is_announced_to_go_costs_no_step_and_no_retry(tracked):
    undisturbed = run(tracked, *ALONE, "scale.workers=0", "name=not-announced")
    with made(2) as cluster:
        screen = Spoken()
        going = in_background(lambda: run(tracked, *ALONE, "scale.workers=1", "scale.retries=0", "name=announced", screen=screen))
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
