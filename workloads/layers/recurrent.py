"""Recurrent layers: the plain RNN, the LSTM and the GRU by torch's kernels, with the weights that Keras draws.

Each layer, and each direction of it, is a torch module of its own. So what lies between them is torch's too: dropout is seeded by the
step (cuDNN's own keeps a state that no checkpoint holds). The second direction reads each row reversed within its own length, so padding
comes last for both and is never read. Packed sequences do the same, but step by step in torch 2.13: rows of about one length, as in a
training batch, took 1.3 to 3 times as long on a CPU, and on a GPU they wait for the lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

# B rows, T time, I inputs of a layer, W width of a cell, D what a layer gives (W, or 2 W in both directions)
# S series, H horizon, K targets

Cell = Literal["rnn", "lstm", "gru"]

_CELLS: dict[Cell, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
_DRAWS = {"weight_ih": nn.init.xavier_uniform_, "weight_hh": nn.init.orthogonal_, "bias_ih": nn.init.zeros_, "bias_hh": nn.init.zeros_}
_FORGET = 1  # torch keeps an LSTM's gates in the order input, forget, cell, output


class Recurrent(nn.Module):
    """Layers of recurrent cells, one reading what the one before says of each time step.

    The cells are Elman's RNN with tanh, the LSTM (Hochreiter & Schmidhuber, 1997) with a forget gate (Gers et al., 2000), and the GRU
    (Cho et al., 2014), its reset gate behind the matrix product as in cuDNN and in Keras' `reset_after`.
    """

    def __init__(self, cell: Cell, inputs: int, width: int, *, layers: int = 1, bidirectional: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.outputs = width * (2 if bidirectional else 1)
        sizes = [inputs, *[self.outputs] * (layers - 1)]
        self.forwards = nn.ModuleList(_cell(cell, size, width) for size in sizes)
        self.backwards = nn.ModuleList(_cell(cell, size, width) for size in sizes if bidirectional)
        self.between = nn.Dropout(dropout)

    def forward(self, x_BTI: Tensor, length_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs of the last layer at each time step (B, T, D), and at the end of each row (B, D).

        With `length_B` (int64, each at least 1) only so many steps of a row are read; the outputs of the others mean nothing.
        """
        for number, forwards in enumerate(self.forwards):
            x_BTI = self.between(x_BTI) if number else x_BTI
            h_BTD = _outputs(forwards, x_BTI)
            if self.backwards:
                backwards_BTW = _outputs(self.backwards[number], _reversed(x_BTI, length_B))
                h_BTD = torch.cat([h_BTD, _reversed(backwards_BTW, length_B)], dim=2)
            x_BTI = h_BTD
        return h_BTD, self._when_read(h_BTD, length_B)

    def _when_read(self, h_BTD: Tensor, length_B: Tensor | None) -> Tensor:
        """The forward direction has read a row at its last step, the backward one at its first."""
        rows = torch.arange(len(h_BTD), device=h_BTD.device)
        last_BD = h_BTD[:, -1] if length_B is None else h_BTD[rows, length_B - 1]
        if not self.backwards:
            return last_BD
        width = self.outputs // 2
        return torch.cat([last_BD[:, :width], h_BTD[:, 0, width:]], dim=1)


class WindowToHorizon(nn.Module):
    """Windows (B, T, S) to forecasts (B, H, K) of the first K series: a dense layer on what is said when a window is read.

    With `residual` both what is read and what is forecast are differences to the window's last row, as in NLinear (Zeng et al., 2023):
    else a series that has left the levels of its training rows is forecast badly, for the cells never met such levels.
    """

    def __init__(self, recurrent: Recurrent, *, horizon: int, targets: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.recurrent, self.dropout = recurrent, nn.Dropout(dropout)
        self.head = nn.Linear(recurrent.outputs, horizon * targets)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._horizon, self._targets, self._residual = horizon, targets, residual

    def forward(self, x_BTS: Tensor) -> Tensor:
        if not self._residual:
            return self._ahead(x_BTS)
        last_B1S = x_BTS[:, -1:]
        return self._ahead(x_BTS - last_B1S) + last_B1S[:, :, : self._targets]

    def _ahead(self, x_BTS: Tensor) -> Tensor:
        _, read_BD = self.recurrent(x_BTS)
        return self.head(self.dropout(read_BD)).view(len(x_BTS), self._horizon, self._targets)


def _cell(cell: Cell, inputs: int, width: int) -> nn.RNNBase:
    """One layer in one direction, with the weights of Keras: they reached better forecasts than torch's in as many epochs.

    Input weights are Glorot's, recurrent ones orthogonal, biases zero but for the forget gate's, which is one (Jozefowicz et al., 2015).
    """
    layer = _CELLS[cell](inputs, width, batch_first=True)
    for name, parameter in layer.named_parameters():
        _DRAWS[name.removesuffix("_l0")](parameter)
    if cell == "lstm":
        nn.init.ones_(layer.get_parameter("bias_ih_l0")[_FORGET * width : (_FORGET + 1) * width])
    if cell != "gru":  # torch adds two biases where the equations have one; the second is a constant, and no parameter
        zero = torch.zeros_like(layer.get_parameter("bias_hh_l0"), requires_grad=False)
        del layer.bias_hh_l0
        layer.register_buffer("bias_hh_l0", zero, persistent=False)
    return layer


def _outputs(layer: nn.Module, x_BTI: Tensor) -> Tensor:
    """A layer's outputs at each time step (B, T, W): in float32 where autocast asks for an LSTM in bf16 and the processor has none.

    oneDNN has it from AVX-512 on; without, torch 2.13 raises "could not create a primitive descriptor".
    """
    on_cpu = x_BTI.device.type == "cpu" and isinstance(layer, nn.LSTM)
    if on_cpu and torch.is_autocast_enabled("cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with torch.autocast("cpu", enabled=False):
            return layer(x_BTI.float())[0]
    return layer(x_BTI)[0]


def _reversed(x_BTI: Tensor, length_B: Tensor | None) -> Tensor:
    """Each row's first `length` steps in the opposite order, the steps after them where they were."""
    if length_B is None:
        return x_BTI.flip(1)
    step_T = torch.arange(x_BTI.shape[1], device=x_BTI.device)
    mirrored_BT = length_B[:, None] - 1 - step_T
    index_BT = torch.where(mirrored_BT >= 0, mirrored_BT, step_T)
    return x_BTI.gather(1, index_BT[:, :, None].expand(x_BTI.shape))
