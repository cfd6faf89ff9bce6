"""The guide's network: its size, and its arithmetic worked out another way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from workloads.cnn import CNN
from workloads.layers.images import Standardize
from workloads.tasks.image_classification import ImageEncoding


def encoding(channels: int, height: int, width: int, classes: int) -> ImageEncoding:
    mean, deviation = tuple(100.0 + c for c in range(channels)), tuple(50.0 + 10 * c for c in range(channels))
    return ImageEncoding(classes=tuple(str(k) for k in range(classes)), shape=(channels, height, width), mean=mean, deviation=deviation)


def test_the_guides_network_has_its_693_962_parameters() -> None:
    network = CNN().network(encoding(1, 28, 28, 10))
    # 32*(3*3+1) + 128*(32*13*13+1) + 10*(128+1)
    assert sum(parameter.numel() for parameter in network.parameters()) == 693_962


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 12), (1, 4, 5)])
@pytest.mark.parametrize("settings", [{}, {"filters": 5, "kernel": 2, "hidden": 7}])
def test_the_forward_pass_is_that_of_plain_functions_on_the_same_weights(shape: tuple[int, int, int], settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    learnt = encoding(*shape, classes=4)
    network = CNN(**settings).network(learnt)
    convolution, bias, hidden, hidden_bias, last, last_bias = (parameter.detach() for parameter in network.parameters())
    pixels = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    x = torch.stack([(pixels[:, c].double() - learnt.mean[c]) / learnt.deviation[c] for c in range(shape[0])], dim=1)
    x = F.max_pool2d(F.relu(F.conv2d(x, convolution.double(), bias.double())), 2)
    x = F.relu(F.linear(x.flatten(1), hidden.double(), hidden_bias.double()))
    expected = F.linear(x, last.double(), last_bias.double())
    torch.testing.assert_close(network(pixels).double(), expected, rtol=0, atol=1e-5)


def test_dropout_silences_its_share_of_the_hidden_units_while_training_only() -> None:
    torch.manual_seed(0)
    network = CNN(dropout=0.75, hidden=4000).network(encoding(1, 6, 6, 2))
    seen: list[torch.Tensor] = []
    network[-1].register_forward_hook(lambda module, given, output: seen.append(given[0]))
    pixels = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    network.train()(pixels)
    network.eval()(pixels)
    training, serving = seen
    alive = serving > 0
    assert (training[alive] == 0).double().mean().item() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("kernel", [8, 9, 20])
def test_a_window_that_leaves_nothing_of_the_image_is_refused_by_name(kernel: int) -> None:
    with pytest.raises(ValueError, match="kernel"):
        CNN(kernel=kernel).network(encoding(1, 8, 8, 10))


def test_pixels_are_standardized_channel_by_channel() -> None:
    layer = Standardize([10.0, 0.0], [2.0, 255.0])
    pixels = torch.tensor([[[[10, 14]], [[0, 255]]]], dtype=torch.uint8)
    assert layer(pixels).tolist() == [[[[0.0, 2.0]], [[0.0, 1.0]]]]


def test_what_pixels_are_standardized_by_travels_with_the_weights() -> None:
    first, second = CNN().network(encoding(1, 6, 6, 2)), CNN().network(encoding(1, 6, 6, 2).model_copy(update={"mean": (3.0,)}))
    second.load_state_dict(first.state_dict())
    assert second[0].mean.item() == 100.0
