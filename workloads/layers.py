"""Modules that several networks share. Imported only when a network is built, because it imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# B rows, C channels, H height, W width


class Standardize(nn.Module):
    """uint8 pixels to floats of zero mean and unit deviation, channel by channel.

    The two constants are buffers: they travel with the weights, so a model cannot be served with another data set's.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW.float() - self.mean) / self.deviation
