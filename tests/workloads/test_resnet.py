"""The residual network against torch's plain functions; its augmentation against what a person would do to a picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines import config
from pipelines.errors import RecipeError
from tests import runs
from workloads.layers.images import Augment
from workloads.resnet import ResNet
from workloads.tasks.image_classification import ImageEncoding

# B rows, C channels, H height, W width


def encoding(channels: int, height: int, width: int, classes: int) -> ImageEncoding:
    mean, deviation = tuple(100.0 + c for c in range(channels)), tuple(50.0 + 10 * c for c in range(channels))
    return ImageEncoding(classes=tuple(str(k) for k in range(classes)), shape=(channels, height, width), mean=mean, deviation=deviation)


def pixels(rows: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (rows, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def by_plain_functions(x: Tensor, weights: list[Tensor], *, groups: int, strides: list[int]) -> Tensor:
    """Pre-activation residual blocks as in the paper's figure, taking the weights in the order in which they are used."""
    left = iter(weights)

    def normalised(x: Tensor) -> Tensor:
        return F.relu(F.group_norm(x, groups, next(left), next(left)))

    x = F.conv2d(x, next(left), padding=1)
    for stride in strides:
        active = normalised(x)
        first = F.conv2d(active, next(left), stride=stride, padding=1)
        second = F.conv2d(normalised(first), next(left), padding=1)
        x = second + (x if first.shape == x.shape else F.conv2d(active, next(left), stride=stride))
    return F.linear(normalised(x).mean((2, 3)), next(left), next(left))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12), (2, 1, 3)])
@pytest.mark.parametrize(("widths", "blocks", "strides"), [((8, 16), 2, [1, 1, 2, 1]), ((4,), 1, [1]), ((8, 8, 8), 1, [1, 2, 2])])
def test_the_forward_pass_is_that_of_plain_functions_on_the_same_weights(
    shape: tuple[int, int, int], widths: tuple[int, ...], blocks: int, strides: list[int]
) -> None:
    torch.manual_seed(0)
    learnt = encoding(*shape, classes=4)
    network = ResNet(widths=widths, blocks=blocks, groups=4).network(learnt)
    for name, parameter in network.named_parameters():  # gains and biases that are not ones and zeros
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    given = pixels(5, *shape)
    x = torch.stack([(given[:, c].double() - learnt.mean[c]) / learnt.deviation[c] for c in range(shape[0])], dim=1)
    expected = by_plain_functions(x, [parameter.detach().double() for parameter in network.parameters()], groups=4, strides=strides)
    torch.testing.assert_close(network(given).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_said_of_a_row_does_not_depend_on_the_rows_beside_it(training: bool) -> None:
    torch.manual_seed(0)
    network = ResNet().network(encoding(3, 10, 10, classes=5)).train(training)
    rows, others = pixels(6, 3, 10, 10), pixels(6, 3, 10, 10, seed=1)
    together = network(torch.cat([rows, others]))[:6]
    torch.testing.assert_close(network(rows), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([network(rows[:1]), network(rows[1:])]), together, rtol=0, atol=1e-5)


def test_the_preset_for_gpus_has_the_36_million_weights_of_wrn_28_10() -> None:
    run = config.load("resnet", ["preset=gpu"]).run
    with torch.device("meta"):
        network = run.model.network(encoding(3, 32, 32, classes=10))
    # Zagoruyko & Komodakis (2016), table 4: 36.5 million
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(36.5e6, rel=0.01)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)]
    assert len(convolutions) == 1 + 3 * 4 * 2  # the paper's 28 are these and three shortcuts of 1x1


def test_groups_that_do_not_divide_a_width_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"model\.groups=8 does not divide .*: 12"):
        config.load("resnet", ["model.widths=[16, 12]"])


def test_dropout_silences_while_training_only() -> None:
    torch.manual_seed(0)
    network = ResNet(dropout=0.5).network(encoding(1, 8, 8, classes=3))
    given = pixels(4, 1, 8, 8)
    assert not torch.equal(network.train()(given), network(given))
    assert torch.equal(network.eval()(given), network(given))


# ---- augmentation


def augmented(images: Tensor, seed: int = 0, **settings: float) -> Tensor:
    torch.manual_seed(seed)
    return Augment(**settings).train()(images)


def shifted(image_CHW: np.ndarray, down: int, right: int) -> np.ndarray:
    """A picture moved by whole pixels, black coming in."""
    _, height, width = image_CHW.shape
    moved = np.zeros_like(image_CHW)
    rows, columns = range(max(0, down), height + min(0, down)), range(max(0, right), width + min(0, right))
    for row in rows:
        for column in columns:
            moved[:, row, column] = image_CHW[:, row - down, column - right]
    return moved


def test_images_are_left_alone_when_nothing_is_asked_for() -> None:
    images = pixels(4, 3, 6, 5)
    assert augmented(images) is images


def test_images_are_left_alone_when_not_training() -> None:
    images = pixels(4, 3, 6, 5)
    assert Augment(shift=2, rotate=30, flip=True).eval()(images) is images


def test_the_same_seed_moves_images_in_the_same_way_and_another_seed_does_not() -> None:
    images, settings = pixels(4, 3, 6, 5), {"shift": 2, "rotate": 30, "flip": True}
    assert torch.equal(augmented(images, **settings), augmented(images, **settings))
    assert not torch.equal(augmented(images, **settings), augmented(images, seed=1, **settings))


@pytest.mark.parametrize("shift", [1, 2])
def test_images_are_shifted_by_whole_pixels_each_in_its_own_way_and_never_further_than_asked(shift: int) -> None:
    image = pixels(1, 2, 6, 5)
    moved = augmented(image.expand(400, -1, -1, -1), shift=shift).numpy()
    ways = {(down, right) for down in range(-shift, shift + 1) for right in range(-shift, shift + 1)}
    candidates = {way: shifted(image[0].numpy(), *way) for way in ways}
    found = [way for each in moved for way, candidate in candidates.items() if np.abs(each - candidate).max() < 0.01]
    assert len(found) == len(moved)
    assert set(found) == ways
    assert max(map(found.count, ways)) < 2.5 * len(moved) / len(ways)


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    image = pixels(1, 2, 6, 5)
    moved = augmented(image.expand(400, -1, -1, -1), flip=True)
    same = (moved - image).abs().amax((1, 2, 3)) < 0.01
    mirrored = (moved - image.flip(3)).abs().amax((1, 2, 3)) < 0.01
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


@pytest.mark.parametrize("shape", [(41, 41), (31, 61)], ids=["square", "wide"])
def test_images_are_turned_about_their_middle_by_no_more_than_asked(shape: tuple[int, int]) -> None:
    height, width = shape
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    blot = 255 * np.exp(-((x - 10) ** 2 + (y - 2) ** 2) / 4)
    moved = augmented(torch.from_numpy(blot.astype(np.uint8)).expand(200, 1, -1, -1), rotate=30).numpy()[:, 0]
    weight = moved.sum((1, 2))
    there_x, there_y = (moved * x).sum((1, 2)) / weight, (moved * y).sum((1, 2)) / weight
    np.testing.assert_allclose(np.hypot(there_x, there_y), math.hypot(10, 2), atol=0.15)
    turned = np.degrees(np.arctan2(there_y, there_x)) - math.degrees(math.atan2(2, 10))
    assert -30.5 < turned.min() < -25
    assert 25 < turned.max() < 30.5


def test_a_full_turn_of_one_half_is_the_picture_upside_down() -> None:
    image = pixels(1, 1, 4, 6)
    torch.manual_seed(0)
    layer = Augment(rotate=180).train()
    turned = layer(image.expand(2000, -1, -1, -1))
    distance = (turned - image.flip(2, 3)).abs().amax((1, 2, 3))
    assert distance.min() < 10  # 2,000 angles: one lies within a degree of 180


def test_augmentation_is_as_exact_under_bf16() -> None:
    image = pixels(8, 1, 28, 28)
    expected = augmented(image, shift=2, rotate=10)
    with torch.autocast("cpu", torch.bfloat16):
        found = augmented(image, shift=2, rotate=10)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-3)


def test_a_resumed_run_sees_the_same_moved_images(storage: Path, tmp_path: Path) -> None:
    moved = ["model.shift=1", "model.rotate=20", "model.flip=true", "model.dropout=0.2", "model.widths=[8]"]
    length = ["train.steps=6", "train.checkpoint_every=2", "train.keep=10", "train.batch=40"]
    whole = runs.job(storage, tmp_path / "whole", *moved, *length, recipe="resnet")
    runs.alone(whole)
    runs.copy_as_of(whole.folder.path, tmp_path / "resumed", 2)
    outcome = runs.alone(runs.job(storage, tmp_path / "resumed", *moved, *length, recipe="resnet"))
    assert outcome.resumed_from_step == 2
    assert runs.final_files(tmp_path / "resumed", 6) == runs.final_files(tmp_path / "whole", 6)
