"""The recurrent networks: their sizes, and their equations written out in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.settings import Optim
from pipelines.training import checkpoint
from pipelines.training.optim import make_optimizer
from workloads.layers.recurrent import Cell, Recurrent
from workloads.rnn import Forecaster
from workloads.tasks.forecasting import SeriesEncoding

CELLS: tuple[Cell, ...] = ("rnn", "lstm", "gru")


def encoding(series: int = 1) -> SeriesEncoding:
    return SeriesEncoding(names=tuple(f"s{number}" for number in range(series)), mean=(0.0,) * series, deviation=(1.0,) * series)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rnn(x_TI: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, _: np.ndarray) -> np.ndarray:
    """h = tanh(W x + U h + b) (Elman, 1990)."""
    h, said = np.zeros(u.shape[1]), []
    for x in x_TI:
        h = np.tanh(w @ x + u @ h + b)
        said.append(h)
    return np.array(said)


def lstm(x_TI: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, _: np.ndarray) -> np.ndarray:
    """c = f c + i g, h = o tanh(c) (Hochreiter & Schmidhuber, 1997; with the forget gate of Gers et al., 2000)."""
    h, c, said = np.zeros(u.shape[1]), np.zeros(u.shape[1]), []
    for x in x_TI:
        i, f, g, o = np.split(w @ x + u @ h + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        said.append(h)
    return np.array(said)


def gru(x_TI: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """h = (1 - z) n + z h, the candidate n reset behind the product (Cho et al., 2014, as cuDNN and Keras' reset_after have it)."""
    h, said = np.zeros(u.shape[1]), []
    for x in x_TI:
        (xr, xz, xn), (hr, hz, hn) = np.split(w @ x + b, 3), np.split(u @ h + inner, 3)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + r * hn) + z * h
        said.append(h)
    return np.array(said)


def weights(layer: nn.Module) -> list[np.ndarray]:
    """W, U, b and the GRU's second bias, in double precision."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [getattr(layer, name).detach().double().numpy() for name in names]


def by_hand(cell: Cell, recurrent: Recurrent, x_TI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the last layer says of one row's steps, and when it has read the row."""
    equations = {"rnn": rnn, "lstm": lstm, "gru": gru}[cell]
    for number, forwards in enumerate(recurrent.forwards):
        said = [equations(x_TI, *weights(forwards))]
        read = said[0][-1]
        if recurrent.backwards:
            backwards = equations(x_TI[::-1], *weights(recurrent.backwards[number]))
            said.append(backwards[::-1])
            read = np.concatenate([read, backwards[-1]])
        x_TI = np.concatenate(said, axis=1)
    return x_TI, read


def shaken(module: nn.Module) -> nn.Module:
    """The module with biases that are not zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_the_forward_pass_is_that_of_the_gates_equations(cell: Cell, layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    recurrent = shaken(Recurrent(cell, 3, 5, layers=layers, bidirectional=bidirectional))
    x_BTI = torch.randn(4, 11, 3)
    steps_BTD, read_BD = recurrent(x_BTI)
    for row, x_TI in enumerate(x_BTI.double().numpy()):
        steps, read = by_hand(cell, recurrent, x_TI)
        np.testing.assert_allclose(steps_BTD[row].detach().numpy(), steps, rtol=0, atol=1e-5)
        np.testing.assert_allclose(read_BD[row].detach().numpy(), read, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_read_as_if_its_padding_were_not_there(cell: Cell, bidirectional: bool) -> None:
    torch.manual_seed(0)
    recurrent = shaken(Recurrent(cell, 3, 5, layers=2, bidirectional=bidirectional))
    x_BTI, length_B = torch.randn(5, 9, 3), torch.tensor([9, 1, 4, 8, 4])
    steps_BTD, read_BD = recurrent(x_BTI, length_B)
    for row, length in enumerate(length_B.tolist()):
        steps, read = by_hand(cell, recurrent, x_BTI[row, :length].double().numpy())
        np.testing.assert_allclose(steps_BTD[row, :length].detach().numpy(), steps, rtol=0, atol=1e-5)
        np.testing.assert_allclose(read_BD[row].detach().numpy(), read, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "parameters"),
    [
        ("lstm", 30_651),  # 4*50*(1+50+1) + 4*50*(50+50+1) + 51, as Keras counts the guide's network
        ("rnn", 7_701),  # 50*(1+50+1) + 50*(50+50+1) + 51
        ("gru", 23_301),  # 3*50*(1+50+2) + 3*50*(50+50+2) + 51
    ],
)
def test_the_guides_network_has_as_many_parameters_as_in_keras(cell: Cell, parameters: int) -> None:
    network = Forecaster(cell=cell).network(encoding())
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == parameters


def test_both_directions_and_several_targets_make_the_head_larger() -> None:
    network = Forecaster(window=30, horizon=6, width=4, bidirectional=True).network(encoding(3))
    assert network.head.weight.shape == (6 * 3, 2 * 4)
    assert network(torch.randn(2, 30, 3)).shape == (2, 6, 3)


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_weights_are_those_that_keras_draws(cell: Cell) -> None:
    torch.manual_seed(0)
    layer = Recurrent(cell, 30, 40).forwards[0]
    w, u, b, inner = weights(layer)
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[cell]
    limit = np.sqrt(6 / (30 + gates * 40))
    assert limit * 0.98 < np.abs(w).max() <= limit
    np.testing.assert_allclose(u.T @ u, np.eye(40), atol=1e-5)
    assert not inner.any()
    forget = slice(40, 80) if cell == "lstm" else slice(0, 0)
    assert (b[forget] == 1).all()
    assert not np.delete(b, forget).any()


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_torchs_second_bias_is_a_zero_that_is_neither_trained_nor_kept(cell: Cell, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (Forecaster(cell=cell, width=6).network(encoding()) for _ in range(2))
    optimizers = [make_optimizer(network, Optim(lr=0.1)) for network in (first, second)]
    first(torch.randn(3, 100, 1)).square().sum().backward()
    optimizers[0].step()
    assert not first.recurrent.forwards[1].bias_hh_l0.any()
    assert first.recurrent.forwards[1].bias_ih_l0.any()
    assert not [name for name in first.state_dict() if "bias_hh" in name]
    path = checkpoint.save(tmp_path, first, optimizers[0], step=1, identity="", world_size=1, keep=2)
    checkpoint.restore(path, second, optimizers[1])
    assert checkpoint.weights_sha256(first) == checkpoint.weights_sha256(second)


def test_a_residual_network_without_weights_repeats_the_last_value_of_each_target() -> None:
    network = Forecaster(window=30, horizon=4, targets=("s0", "s1"), residual=True).network(encoding(3))
    with torch.no_grad():
        network.head.weight.zero_()
    x_BTS = torch.randn(5, 30, 3)
    assert torch.equal(network(x_BTS), x_BTS[:, -1:, :2].expand(5, 4, 2))


@pytest.mark.parametrize("residual", [False, True])
def test_the_level_of_a_series_moves_a_residual_forecast_by_as_much_and_no_other(residual: bool) -> None:
    torch.manual_seed(0)
    network = Forecaster(window=30, horizon=4, residual=residual).network(encoding(2))
    x_BTS, level = torch.randn(5, 30, 2), torch.tensor([3.0, -7.0])
    moved = torch.allclose(network(x_BTS + level), network(x_BTS) + level, atol=1e-5)
    assert moved == residual


@pytest.mark.parametrize(("layers", "places"), [(1, 1), (3, 3)])
def test_dropout_silences_its_share_of_what_each_layer_says_while_training_only(layers: int, places: int) -> None:
    torch.manual_seed(0)
    network = Forecaster(window=24, layers=layers, width=100, dropout=0.75).network(encoding())
    silenced: list[float] = []
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, given, output: silenced.append(float((output == 0).double().mean())))
    x_BTS = torch.randn(100, 24, 1)
    network.train()(x_BTS)
    assert silenced == pytest.approx([0.75] * places, abs=0.02)
    silenced.clear()
    assert torch.equal(network.eval()(x_BTS), network(x_BTS))
    assert silenced == [0.0] * 2 * places
