"""The guide's convolutional network: one convolution, one pooling, one hidden layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from .base import DataError
from .tasks.image_classification import ImageClassification, ImageEncoding

if TYPE_CHECKING:
    from torch import nn


class CNN(ImageClassification):
    """Convolutional image classifier (LeCun et al., 1998), in the shape of the guide's Keras example."""

    filters: int = Field(32, gt=0)
    """Feature maps of the convolution."""
    kernel: int = Field(3, gt=0)
    """Height and width of the convolution's window, in pixels."""
    hidden: int = Field(128, gt=0)
    """Units of the hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of hidden units set to zero at each training step."""

    def network(self, encoding: ImageEncoding) -> nn.Module:
        """uint8 images (B, C, H, W) to logits (B, K)."""
        from torch import nn

        from .layers.images import Standardize

        channels, height, width = encoding.shape
        pooled = max(0, (height - self.kernel + 1) // 2) * max(0, (width - self.kernel + 1) // 2)
        if pooled == 0:
            raise DataError(f"model.kernel={self.kernel} leaves nothing to pool of images of {height}x{width} pixels")
        return nn.Sequential(
            Standardize(encoding.mean, encoding.deviation),
            nn.Conv2d(channels, self.filters, self.kernel),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(self.filters * pooled, self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, len(encoding.classes)),
        )
