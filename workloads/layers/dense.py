"""Modules of dense networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# B rows, F features

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
_FURTHEST = 1e6


class Dense(nn.Sequential):
    """`layers` hidden layers, each activation(xW + b) and then dropout, and an output layer xW + b: (B, inputs) to (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int, layers: int, activation: str, dropout: float) -> None:
        super().__init__()
        for _ in range(layers):
            self.append(nn.Linear(inputs, hidden)).append(ACTIVATIONS[activation]()).append(nn.Dropout(dropout))
            inputs = hidden
        self.append(nn.Linear(inputs, outputs))


class StandardizeColumns(nn.Module):
    """float64 columns (B, F) to float32 ones of zero mean and unit deviation. One of deviation zero is silenced: it says nothing.

    The subtraction is done in float64: of a time in seconds, say, float32 would leave no more than minutes. A value further out than a
    million deviations, which no row of fewer than 10^12 training rows can be, is taken to be just there, so that no answer is NaN.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        scale = [1 / each if each else 0.0 for each in deviation]
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, x_BF: Tensor) -> Tensor:
        return ((x_BF - self.mean) * self.scale).clamp(-_FURTHEST, _FURTHEST).float()
