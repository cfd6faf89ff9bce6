"""Dense networks against formulas written by hand in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from workloads.layers.dense import ACTIVATIONS, StandardizeColumns
from workloads.mlp import MLP, TabularMLP
from workloads.tasks.image_classification import ImageEncoding
from workloads.tasks.tabular_classification import TableEncoding

IMAGES = ImageEncoding(classes=tuple("abcd"), shape=(3, 5, 4), mean=(100.0, 110.0, 120.0), deviation=(50.0, 60.0, 70.0))
MNIST = ImageEncoding(classes=tuple("0123456789"), shape=(1, 28, 28), mean=(33.0,), deviation=(78.0,))
BY_HAND = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
}


def table(classes: int, features: int = 6) -> TableEncoding:
    mean, deviation = np.linspace(-5, 1e9, features).tolist(), np.linspace(0.5, 100, features).tolist()
    names = tuple(f"column_{each}" for each in range(features))
    return TableEncoding(classes=tuple("abcdefg"[:classes]), features=names, mean=tuple(mean), deviation=tuple(deviation))


def layer_by_layer(x: np.ndarray, network: nn.Module, activation: str) -> np.ndarray:
    """activation(xW + b) for each hidden layer, then xW + b, in float64."""
    weights = [parameter.detach().double().numpy() for parameter in network.parameters()]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = BY_HAND[activation](x @ weight.T + bias)
    return x @ weights[-2].T + weights[-1]


def test_the_guides_network_has_its_101_770_parameters() -> None:
    network = MLP().network(MNIST)
    # 784*128 + 128, 128*10 + 10
    assert sum(parameter.numel() for parameter in network.parameters()) == 101_770


def test_every_activation_that_can_be_set_is_known_and_compared() -> None:
    stated = set(MLP.model_json_schema()["properties"]["activation"]["enum"])
    assert stated == set(ACTIVATIONS) == set(BY_HAND) == set(TabularMLP.model_json_schema()["properties"]["activation"]["enum"])


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("activation", BY_HAND)
def test_images_pass_the_layers_that_the_formulas_say(activation: str, layers: int) -> None:
    torch.manual_seed(0)
    network = MLP(hidden=7, layers=layers, activation=activation).network(IMAGES)
    pixels = torch.randint(0, 256, (9, *IMAGES.shape), dtype=torch.uint8)
    x = (pixels.double().numpy() - np.reshape(IMAGES.mean, (3, 1, 1))) / np.reshape(IMAGES.deviation, (3, 1, 1))
    expected = layer_by_layer(x.reshape(9, -1), network, activation)
    np.testing.assert_allclose(network(pixels).detach().numpy(), expected, rtol=0, atol=1e-5)
    assert expected.shape == (9, 4)


@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (3, 3), (7, 7)])
def test_rows_of_a_table_pass_the_layers_that_the_formulas_say(classes: int, outputs: int) -> None:
    torch.manual_seed(0)
    encoding = table(classes)
    network = TabularMLP(hidden=8, layers=2, activation="tanh").network(encoding)
    z = np.random.default_rng(0).normal(size=(9, 6))
    rows = torch.from_numpy(z * encoding.deviation + encoding.mean)
    expected = layer_by_layer(z, network, "tanh")
    np.testing.assert_allclose(network(rows).detach().numpy(), expected, rtol=0, atol=1e-5)
    assert expected.shape == (9, outputs)


@pytest.mark.parametrize("task", [MLP, TabularMLP])
def test_dropout_silences_its_share_of_the_hidden_units_while_training_only(task: type[MLP] | type[TabularMLP]) -> None:
    torch.manual_seed(0)
    tabular = task is TabularMLP
    network = task(dropout=0.75, hidden=4000).network(table(2) if tabular else IMAGES)
    seen: list[torch.Tensor] = []
    network[-1][-1].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    rows = torch.randn(4, 6) if tabular else torch.randint(0, 256, (4, *IMAGES.shape), dtype=torch.uint8)
    network.train()(rows)
    network.eval()(rows)
    training, serving = seen
    alive = serving > 0
    assert (training[alive] == 0).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_times_in_seconds_keep_their_seconds() -> None:
    times = 1_700_000_000 + torch.arange(10, dtype=torch.float64)  # float32 would hold them to the nearest 128
    layer = StandardizeColumns([1_700_000_000.0], [2.0])
    assert layer(times[:, None]).flatten().tolist() == [each / 2 for each in range(10)]


def test_a_column_that_never_varied_says_nothing_whatever_it_holds_later() -> None:
    layer = StandardizeColumns([3.0, 0.0], [0.0, 1.0])
    assert layer(torch.tensor([[3.0, 1.0], [1e300, 1.0]], dtype=torch.float64)).tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_a_value_out_of_all_proportion_gives_no_nan() -> None:
    torch.manual_seed(0)
    network = TabularMLP().network(table(3))
    rows = torch.tensor([[1e38, -1e38] * 3, [1e300, 0.0] * 3], dtype=torch.float64)
    assert network(rows).isfinite().all()
