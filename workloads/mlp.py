"""The guide's dense network, for images (softmax over the classes) and for tables (one sigmoid output where there are two classes)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from .tasks.image_classification import ImageClassification, ImageEncoding
from .tasks.tabular_classification import TableEncoding, TabularClassification
from .tasks.tabular_regression import RegressionEncoding, TabularRegression

if TYPE_CHECKING:
    from torch import nn


class _Layers(BaseModel):
    """The settings of a stack of dense layers."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    hidden: int = Field(128, gt=0)
    """Units of each hidden layer."""
    layers: int = Field(1, ge=0)
    """Hidden layers; 0 makes a linear classifier."""
    activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    """Activation of the hidden layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of hidden units set to zero at each training step."""

    def dense(self, inputs: int, outputs: int) -> nn.Module:
        from .layers.dense import Dense

        return Dense(inputs, outputs, hidden=self.hidden, layers=self.layers, activation=self.activation, dropout=self.dropout)


class MLP(ImageClassification, _Layers):
    """Dense classifier of images (Rumelhart, Hinton & Williams, 1986), in the shape of the guide's example: pixels, 128 ReLU, softmax."""

    def network(self, encoding: ImageEncoding) -> nn.Module:
        """uint8 images (B, C, H, W) to logits (B, K)."""
        from torch import nn

        from .layers.images import Standardize

        channels, height, width = encoding.shape
        dense = self.dense(channels * height * width, len(encoding.classes))
        return nn.Sequential(Standardize(encoding.mean, encoding.deviation), nn.Flatten(), dense)


class TabularMLP(TabularClassification, _Layers):
    """Dense classifier of the rows of a table; one sigmoid output where there are two classes, softmax where there are more."""

    def network(self, encoding: TableEncoding) -> nn.Module:
        """float64 columns (B, F) to logits (B, 1) or (B, K)."""
        from torch import nn

        from .layers.dense import StandardizeColumns

        dense = self.dense(len(encoding.features), self.outputs(encoding))
        return nn.Sequential(StandardizeColumns(encoding.mean, encoding.deviation), dense)


class RegressionMLP(TabularRegression, _Layers):
    """Dense network that predicts one number for each row of a table."""

    def network(self, encoding: RegressionEncoding) -> nn.Module:
        """float64 columns (B, F) to z (B, 1)."""
        from torch import nn

        from .layers.dense import StandardizeColumns

        return nn.Sequential(StandardizeColumns(encoding.mean, encoding.deviation), self.dense(len(encoding.features), 1))
