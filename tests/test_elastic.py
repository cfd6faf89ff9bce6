"""`scale.workers=1..4` follows what the cluster has, from two nodes to four and down again, and trains what one process would have."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from pipelines.process import in_background
from tests.cli import until
from tests.nodes import TAKING, Spoken, losses, made, run, trains

LONGER = ("train.steps=6000", *TAKING[1:])


def weights(result):
    return load_file(f"{result['checkpoint']}/model.safetensors")


def trains_on(storage, name, points=5):
    """Whether the run journals so many points more, from now on."""
    return trains(storage, name, len(losses(storage, name)) + points)


@pytest.mark.slow
def test_from_two_workers_to_four_and_to_three_when_a_node_is_killed(tracked):
    alone = run(tracked, *LONGER, "scale.workers=0", "name=one-process")
    with made(2) as cluster:
        screen = Spoken()
        going = in_background(lambda: run(tracked, *LONGER, "scale.workers=1..4", "name=one-to-four", screen=screen))
        until(trains(tracked, "one-to-four", 5))
        assert len(cluster.workers()) == 2
        for workers in (3, 4):
            cluster.add()
            until(lambda wanted=workers: len(cluster.workers()) == wanted)
            until(trains_on(tracked, "one-to-four"))
        cluster.kill(cluster.workers()[0])
        result = going.result(timeout=300)
    launched = [int(re.match(r"(\d) of scale.workers=1..4", text)[1]) for text in screen.heard("of scale.workers=1..4 x")]
    assert launched == [2, 3, 4, 3]
    assert len(screen.heard("going on with")) == 2
    assert len(screen.heard("lost worker")) == 1
    assert result["workers"] == 3
    assert losses(tracked, "one-to-four") == pytest.approx(losses(tracked, "one-process"), abs=1e-5)
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(result)[name], tensor, rtol=0, atol=1e-5, msg=name)
