"""A cluster of two nodes that is the caller's own: a run has the curve of one process."""

from __future__ import annotations

import pytest

from tests.nodes import SHORT, losses, made, run

TWO = (*SHORT, "scale.workers=2", "scale.cpus=1")
pytestmark = pytest.mark.usefixtures("two")


@pytest.fixture(scope="module")
def two():
    with made(2) as cluster:
        yield cluster


@pytest.mark.long
@pytest.mark.timeout(300)  # two trainings, beside other tests that use Ray
def test_two_nodes_follow_the_curve_of_one_process(tracked):
    alone = run(tracked, *SHORT, "scale.workers=0", "name=alone-cnn")
    result = run(tracked, *SHORT, "scale.workers=2", "name=on-two-nodes")
    assert result["workers"] == 2
    assert losses(tracked, "on-two-nodes") == pytest.approx(losses(tracked, "alone-cnn"), abs=1e-5)
    assert result["metrics"]["test/accuracy"] == alone["metrics"]["test/accuracy"]


@pytest.mark.slow
def test_workers_that_hold_a_part_each_follow_the_curve_of_those_that_hold_all(tracked):
    results = {
        strategy: run(tracked, *TWO, f"scale.strategy={strategy}", f"name={strategy}", recipe="transformer") for strategy in ("ddp", "fsdp")
    }
    assert losses(tracked, "fsdp", "transformer") == pytest.approx(losses(tracked, "ddp", "transformer"), abs=1e-5)
    assert results["fsdp"]["metrics"]["test/accuracy"] == results["ddp"]["metrics"]["test/accuracy"]
    assert [result["workers"] for result in results.values()] == [2, 2]


@pytest.mark.slow
def test_a_recurrent_network_does_as_well(tracked):
    run(tracked, *SHORT, "scale.workers=0", "name=alone-lstm", recipe="lstm")
    run(tracked, *SHORT, "scale.workers=2", "name=lstm-on-two-nodes", recipe="lstm")
    assert losses(tracked, "lstm-on-two-nodes", "lstm") == pytest.approx(losses(tracked, "alone-lstm", "lstm"), abs=1e-5)
