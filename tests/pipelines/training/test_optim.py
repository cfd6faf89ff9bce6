"""The optimizer is torch's own, and the learning rate a number worked out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pipelines.settings import Optim
from pipelines.training.optim import learning_rate, make_optimizer

BATCHES = torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    for batch in BATCHES:
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def theirs(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """torch's optimizer in its plain form, one loop over the parameters; the decay is of matrices only."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.01, momentum=0.8, foreach=False, fused=False)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(groups, lr=0.01, foreach=False, fused=False)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_update_is_that_of_torch(name: str) -> None:
    model = network()
    expected = trained(twin := copy.deepcopy(model), theirs(name, twin))
    settings = Optim(name=name, lr=0.01, weight_decay=0.1, momentum=0.8)
    for key, weights in trained(model, make_optimizer(model, settings)).items():
        torch.testing.assert_close(weights, expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_only_matrices_are_decayed(name: str) -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = make_optimizer(model, Optim(name=name, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, torch.ones_like(parameter))}
    assert moved == {"0.weight", "2.weight"}


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, Optim())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def rates(steps: int, **settings: object) -> list[float]:
    return [learning_rate(step, Optim(**settings), steps) for step in range(steps)]


def test_the_warm_up_rises_in_even_steps_and_never_from_zero() -> None:
    assert rates(5, lr=1.0, warmup=4, schedule="constant") == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_constant_rate_stays() -> None:
    assert rates(4, lr=0.3, schedule="constant") == [0.3] * 4


def test_a_linear_rate_falls_in_even_steps() -> None:
    assert rates(4, lr=1.0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_linear_rate_falls_over_what_the_warm_up_leaves() -> None:
    assert rates(7, lr=0.9, warmup=2, schedule="linear") == pytest.approx([0.3, 0.6, 0.9, 0.72, 0.54, 0.36, 0.18])


def test_a_cosine_rate_is_half_at_half_of_the_way() -> None:
    root = math.sqrt(2) / 2
    assert rates(4, lr=2.0, schedule="cosine") == pytest.approx([2.0, 1 + root, 1.0, 1 - root])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_would_be_zero_one_step_after_the_last(schedule: str) -> None:
    assert learning_rate(50, Optim(lr=1.0, warmup=10, schedule=schedule), 50) == pytest.approx(0, abs=1e-12)


def test_a_warm_up_longer_than_the_run_never_reaches_the_top() -> None:
    assert rates(3, lr=1.0, warmup=9) == pytest.approx([0.1, 0.2, 0.3])
