"""Recurrent networks: the plain RNN, the LSTM and the GRU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .tasks.forecasting import Forecasting, SeriesEncoding

if TYPE_CHECKING:
    from torch import nn


class Forecaster(Forecasting):
    """Recurrent forecaster in the shape of the guide's Keras example: layers of cells, then a dense layer on the last output."""

    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    """The plain RNN (Elman, 1990), the LSTM (Hochreiter & Schmidhuber, 1997) or the GRU (Cho et al., 2014)."""
    layers: int = Field(2, gt=0)
    """Recurrent layers."""
    width: int = Field(50, gt=0)
    """Units of a layer, in each direction."""
    bidirectional: bool = False
    """Read each window from its end as well."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout: share of each layer's outputs set to zero at each training step."""
    residual: bool = False
    """Read and forecast differences to a window's last row, so that the level of a series does not matter."""

    def network(self, encoding: SeriesEncoding) -> nn.Module:
        """float32 windows (B, T, S), standardised, to forecasts (B, H, K)."""
        from .layers.recurrent import Recurrent, WindowToHorizon

        return WindowToHorizon(
            Recurrent(
                self.cell,
                len(encoding.names),
                self.width,
                layers=self.layers,
                bidirectional=self.bidirectional,
                dropout=self.dropout,
            ),
            horizon=self.horizon,
            targets=len(self.targets or encoding.names),
            dropout=self.dropout,
            residual=self.residual,
        )
