"""A residual network for images, grey or in colour, small enough for digits and as wide as one likes.

Its normalisation is GroupNorm (Wu & He, 2018) and not BatchNorm: BatchNorm makes a row's result depend on the rows beside it, so the
curve would depend on how the batch is cut over workers and micro-batches, and a served model would need running means kept apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from .tasks.image_classification import ImageClassification, ImageEncoding

if TYPE_CHECKING:
    from torch import nn


class ResNet(ImageClassification):
    """Residual image classifier (He et al., 2016), in the form of wide residual networks (Zagoruyko & Komodakis, 2016)."""

    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field((16, 32, 64), min_length=1)
    """Feature maps of each stage; every stage but the first halves height and width."""
    blocks: int = Field(1, gt=0)
    """Residual blocks of each stage, of two convolutions each."""
    groups: int = Field(8, gt=0)
    """Groups of feature maps that are normalised together; divides every width."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of values set to zero between the convolutions of a block at each training step."""
    shift: int = Field(0, ge=0)
    """Largest random shift of a training image, in pixels, up or down and left or right."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Largest random rotation of a training image, in degrees, either way."""
    flip: bool = False
    """Mirror half of the training images at random, left to right."""

    @model_validator(mode="after")
    def _whole_groups(self) -> ResNet:
        if uneven := [width for width in self.widths if width % self.groups]:
            raise ValueError(f"model.groups={self.groups} does not divide model.widths={list(self.widths)}: {uneven[0]}")
        return self

    def network(self, encoding: ImageEncoding) -> nn.Module:
        """uint8 images (B, C, H, W) to logits (B, K)."""
        from torch import nn

        from .layers.images import Augment, Residual, Standardize

        network = nn.Sequential(
            Augment(shift=self.shift, rotate=self.rotate, flip=self.flip),
            Standardize(encoding.mean, encoding.deviation),
            nn.Conv2d(encoding.shape[0], self.widths[0], 3, padding=1, bias=False),
        )
        channels = self.widths[0]
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                network.append(Residual(channels, width, stride=stride, groups=self.groups, dropout=self.dropout))
                channels = width
        head = (nn.GroupNorm(self.groups, channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return network.extend(nn.Sequential(*head, nn.Linear(channels, len(encoding.classes))))
