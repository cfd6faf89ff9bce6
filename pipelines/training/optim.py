"""The optimizer, and the learning rate as a function of the step. There is no scheduler object: it would be state to save."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pipelines.settings import Optim


def make_optimizer(model: nn.Module, settings: Optim) -> torch.optim.Optimizer:
    """torch's own optimizer, in its fused form. Biases and gains (one dimension) are not decayed, as is usual since GPT-2."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "sgd":
        fused = not any(isinstance(parameter, DTensor) for parameter in trained)  # of sharded weights torch 2.13 knows only Adam's
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, fused=True)


def learning_rate(step: int, settings: Optim, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear rise over `warmup` steps, then constant, linear or cosine to zero."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / (settings.warmup + 1)
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.lr * (1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)
