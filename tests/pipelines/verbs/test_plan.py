"""What a run would take is told before it starts."""

from __future__ import annotations

import pytest

from pipelines import config
from pipelines.screen import Screen
from pipelines.verbs.plan import plan

COPIES = {"adamw": 4, "sgd": 3}
"""Weights, gradients, and two moments or one."""


def planned(storage, *settings):
    return plan(config.load("mlp_binary", [f"storage={storage}", "scale.cpus=1", *settings]), Screen(as_json=True))


@pytest.mark.parametrize("optimizer", COPIES)
@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["scale.workers=2"], 1),
        (["scale.workers=0", "scale.strategy=fsdp"], 1),
        (["scale.workers=1", "scale.strategy=fsdp"], 1),
        (["scale.workers=2", "scale.strategy=fsdp"], 2),
        (["scale.workers=4", "scale.strategy=fsdp"], 4),
        (["scale.workers=2..4", "scale.strategy=fsdp"], 2),
    ],
)
def test_each_worker_keeps_its_part_of_what_is_sharded_and_all_of_what_is_not(storage, settings, parts, optimizer):
    told = planned(storage, *settings, f"optim.name={optimizer}")
    assert told["parameters"] == 1025
    assert told["memory"]["weights_gradients_and_optimizer_bytes"] == COPIES[optimizer] * 4 * -(-1025 // parts)


def test_a_person_is_told_it_in_mebibytes(storage, capsys):
    plan(config.load("gpt", [f"storage={storage}", "scale.workers=2", "scale.strategy=fsdp", "scale.cpus=1"]), Screen())
    assert "470,528 parameters; 3.6 MiB with gradients and optimizer state on each worker" in capsys.readouterr().out


def test_workers_that_would_share_a_gpu_are_a_problem(storage):
    [problem] = [problem for problem in planned(storage, "scale.workers=2", "scale.gpus=0.5")["problems"] if "GPU" in problem]
    assert "two workers of a run cannot share a GPU" in problem
