"""Modules of networks for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

# B rows, C channels, H height, W width, D channels of the output


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


class Augment(nn.Module):
    """While training, moves each image by chance: turned by up to `rotate` degrees, shifted by up to `shift` whole pixels each way,
    mirrored half of the times if `flip`. What comes in from outside is black. Evaluation sees the images as they are.

    The chance is torch's global generator, which is seeded by step and micro-batch, so a resumed run sees the same images.
    """

    def __init__(self, *, shift: int = 0, rotate: float = 0.0, flip: bool = False) -> None:
        super().__init__()
        self.shift, self.rotate, self.flip = shift, rotate, flip

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training or not (self.shift or self.rotate or self.flip):
            return x_BCHW
        rows, _, height, width = x_BCHW.shape
        turned, down, right, mirrored = torch.rand(4, rows, 1, 1, device=x_BCHW.device)
        angle = (2 * turned - 1) * math.radians(self.rotate)
        down, right = (((2 * self.shift + 1) * drawn).floor() - self.shift for drawn in (down, right))
        # for each pixel of the new image: where it lies in the old one, in pixels from the middle
        y_BH1 = torch.arange(height, device=x_BCHW.device).view(1, -1, 1) - (height - 1) / 2 - down
        x_B1W = torch.arange(width, device=x_BCHW.device).view(1, 1, -1) - (width - 1) / 2 - right
        from_x_BHW = angle.cos() * x_B1W - angle.sin() * y_BH1
        from_y_BHW = angle.sin() * x_B1W + angle.cos() * y_BH1
        if self.flip:
            from_x_BHW = torch.where(mirrored < 0.5, -from_x_BHW, from_x_BHW)
        grid_BHW2 = torch.stack([from_x_BHW * (2 / width), from_y_BHW * (2 / height)], dim=-1)  # grid_sample's edges are at -1 and 1
        return grid_sample(x_BCHW.float(), grid_BHW2, align_corners=False)


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to what came in: (B, C, H, W) to (B, D, H/stride, W/stride).

    Normalisation and ReLU stand before each convolution (He et al., 2016, "Identity mappings in deep residual networks"), dropout
    between the two (Zagoruyko & Komodakis, 2016).
    """

    def __init__(self, channels: int, outputs: int, *, stride: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.convolution1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = channels == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, outputs, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = self.norm1(x_BCHW).relu()
        came_BDHW = x_BCHW if isinstance(self.shortcut, nn.Identity) else self.shortcut(active_BCHW)
        x_BDHW = self.convolution1(active_BCHW)
        return came_BDHW + self.convolution2(self.dropout(self.norm2(x_BDHW).relu()))
