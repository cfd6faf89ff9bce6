"""Images to arrays, scores and words, each worked out by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from tests.idx import pictures
from workloads.base import DataError
from workloads.cnn import CNN
from workloads.tasks.image_classification import ImageEncoding

GREY, LABELS = pictures(30)
COLOUR = np.random.default_rng(1).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
TASK = CNN()


class Columns:
    """Rows held in memory."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return {name: self.columns[name][index] for name in columns or self.columns}


def fitted(images: np.ndarray = GREY, labels: Any = LABELS, task: CNN = TASK) -> ImageEncoding:
    return task.fit([{"image": images[:7], "label": np.asarray(labels[:7])}, {"image": images[7:], "label": np.asarray(labels[7:])}])


def test_grey_images_get_a_channel_and_keep_their_pixels() -> None:
    encoded = TASK.encode({"image": GREY, "label": LABELS}, fitted())
    assert encoded["image"].dtype == np.uint8
    assert encoded["image"].shape == (30, 1, 6, 5)
    np.testing.assert_array_equal(encoded["image"][:, 0], GREY)
    np.testing.assert_array_equal(encoded["label"], LABELS)


def test_colour_images_are_turned_channels_first() -> None:
    encoding = fitted(COLOUR)
    encoded = TASK.encode({"image": COLOUR}, encoding)["image"]
    assert encoding.shape == (3, 6, 5)
    assert encoded.flags.c_contiguous
    assert all(encoded[n, c, h, w] == COLOUR[n, h, w, c] for n, c, h, w in np.ndindex(30, 3, 6, 5))


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_mean_and_deviation_are_those_of_each_channel(images: np.ndarray) -> None:
    encoding, flat = fitted(images), images.reshape(-1, images.shape[3] if images.ndim == 4 else 1).astype(float)
    assert encoding.mean == pytest.approx(flat.mean(axis=0).tolist(), rel=1e-12)
    assert encoding.deviation == pytest.approx(flat.std(axis=0).tolist(), rel=1e-9)


def test_images_without_contrast_are_no_division_by_zero() -> None:
    encoding = fitted(np.full_like(GREY, 77))
    logits = CNN().network(encoding)(torch.full((2, 1, 6, 5), 77, dtype=torch.uint8))
    assert logits.isfinite().all()


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_the_encoding_survives_json(images: np.ndarray) -> None:
    encoding = fitted(images)
    assert ImageEncoding.model_validate_json(encoding.model_dump_json()) == encoding


def test_numbers_are_classes_in_the_order_of_numbers() -> None:
    labels = np.array([10, 9, 2] * 10)
    encoding = fitted(labels=labels)
    assert encoding.classes == ("2", "9", "10")
    assert TASK.encode({"image": GREY[:3], "label": labels[:3]}, encoding)["label"].tolist() == [2, 1, 0]


def test_words_are_classes_too() -> None:
    labels = np.array(["dog", "cat"] * 15)
    encoding = fitted(labels=labels)
    assert encoding.classes == ("cat", "dog")
    assert TASK.encode({"image": GREY[:3], "label": labels[:3]}, encoding)["label"].tolist() == [1, 0, 1]


def test_classes_that_were_stated_keep_their_order() -> None:
    task = CNN(classes=("2", "0", "1", "never seen"))
    encoding = fitted(task=task)
    assert encoding.classes == task.classes
    assert task.encode({"image": GREY[:3], "label": LABELS[:3]}, encoding)["label"].tolist() == [1, 2, 0]


def test_a_class_stated_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="classes"):
        fitted(task=CNN(classes=("0", "1", "2", "1")))


def test_a_label_outside_the_classes_names_its_row() -> None:
    with pytest.raises(DataError, match="column label: 2 is outside the classes 0, 1") as error:
        TASK.encode({"image": GREY, "label": LABELS}, fitted(labels=[0, 1] * 15))
    assert error.value.row == 2


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ([{"image": GREY, "label": np.zeros(30, int)}], "every training row is labelled '0'"),
        ([{"image": GREY, "label": LABELS}, {"image": GREY[:, 1:], "label": LABELS}], "images are 5x5 grey, but those before are 6x5 grey"),
        ([{"image": GREY, "label": LABELS}, {"image": COLOUR, "label": LABELS}], "images are 6x5 in colour, but those before are 6x5 grey"),
        ([{"image": GREY.reshape(30, -1), "label": LABELS}], "images must be (rows, height, width)"),
    ],
)
def test_rows_that_nothing_can_be_learnt_from_are_refused(batches: list[dict[str, np.ndarray]], sentence: str) -> None:
    with pytest.raises(DataError) as error:
        TASK.fit(batches)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("given", "learnt", "sentence"),
    [
        (GREY[:, 1:], GREY, "images are 5x5 grey, but those trained on are 6x5 grey"),
        (COLOUR, GREY, "images are 6x5 in colour, but those trained on are 6x5 grey"),
        (GREY, COLOUR, "images are 6x5 grey, but those trained on are 6x5 in colour"),
        (np.zeros((1, 6, 5, 4), np.uint8), COLOUR, "images are 6x5 of 4 channels, but those trained on are 6x5 in colour"),
    ],
    ids=["size", "colour for grey", "grey for colour", "transparency"],
)
def test_images_of_another_size_or_mode_are_refused_when_preparing_and_when_serving(
    given: np.ndarray, learnt: np.ndarray, sentence: str
) -> None:
    for use in (lambda: TASK.encode({"image": given}, fitted(learnt)), lambda: TASK.serving(fitted(learnt)).inputs(given)):
        with pytest.raises(DataError) as error:
            use()
        assert str(error.value) == f"{sentence}; model.size and model.channels bring all to one kind"


@pytest.mark.parametrize("pixel", [0.5, -1.0, 256.0, math.nan, math.inf])
def test_a_pixel_that_is_no_byte_is_refused_by_value_and_row(pixel: float) -> None:
    images = GREY.astype(float)
    images[3, 2, 1] = pixel
    for use in (lambda: TASK.fit([{"image": images, "label": LABELS}]), lambda: TASK.serving(fitted()).inputs(images)):
        with pytest.raises(DataError, match=f"whole numbers from 0 to 255, but a pixel is {pixel:g}$") as error:
            use()
        assert error.value.row == 3


def test_lists_of_several_sizes_are_refused_by_the_first_row_that_differs() -> None:
    with pytest.raises(DataError, match="images are 5x5 grey, but those trained on are 6x5 grey") as error:
        TASK.serving(fitted()).inputs([*GREY[:4], GREY[4, 1:]])
    assert error.value.row == 4


def test_an_image_without_the_axis_of_rows_is_told_how_to_get_one() -> None:
    with pytest.raises(DataError, match=r"not \(6, 5\); one image alone is given as image\[None\]"):
        TASK.serving(fitted()).inputs(GREY[0])
    assert len(TASK.serving(fitted()).inputs(GREY[0][None])["image"]) == 1


class Says(nn.Module):
    """Says the same logits whatever it is shown."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


ODDS = [[math.log(3), 0.0], [math.log(3), 0.0], [0.0, math.log(7)]]  # probabilities 3/4 1/4, 3/4 1/4, 1/8 7/8


def shown(labels: list[int]) -> dict[str, torch.Tensor]:
    return {"image": torch.zeros(len(labels), 1, 6, 5, dtype=torch.uint8), "label": torch.tensor(labels, dtype=torch.int64)}


def test_loss_and_accuracy_are_sums_over_rows_and_their_count() -> None:
    model = Says(ODDS)
    scores = TASK.step(model, shown([0, 1, 1]))
    assert scores["loss"].total.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4) - math.log(7 / 8), rel=1e-6)
    assert (int(scores["accuracy"].total), scores["accuracy"].count, scores["loss"].count) == (2, 3, 3)
    scores["loss"].total.backward()
    assert model.logits.grad[0].tolist() == pytest.approx([-1 / 4, 1 / 4], rel=1e-6)


def test_a_batch_without_rows_adds_nothing() -> None:
    scores = TASK.step(Says(ODDS), shown([]))
    assert (float(scores["loss"].total), int(scores["accuracy"].total), scores["loss"].count) == (0.0, 0, 0)


def test_outputs_are_decoded_to_labels_and_probabilities() -> None:
    outputs = {name: output.detach().numpy() for name, output in TASK.predict(Says(ODDS), shown([0, 0, 0])).items()}
    encoding = fitted(labels=["cat", "dog"] * 15)
    decoded = TASK.serving(encoding).decode(outputs)
    assert decoded["label"] == ["cat", "cat", "dog"]
    assert decoded["probability"] == pytest.approx([3 / 4, 3 / 4, 7 / 8])
    assert np.asarray(decoded["probabilities"]).ravel().tolist() == pytest.approx([3 / 4, 1 / 4, 3 / 4, 1 / 4, 1 / 8, 7 / 8])
    assert {type(value) for value in decoded["probability"]} == {float}


def test_the_baseline_is_the_share_of_the_training_rows_commonest_class() -> None:
    train, test = Columns(label=np.array([1, 1, 2, 0, 1])), Columns(label=np.array([0, 1, 1, 2, 2, 2, 2, 2]))
    assert TASK.baselines(train, test, fitted()) == {"majority_class": {"accuracy": 0.25}}


def test_the_confusion_matrix_counts_true_against_predicted() -> None:
    truth, said = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 0, 2]
    outputs = {"probabilities": np.eye(3)[said]}
    test = Columns(label=np.array(truth), image=GREY[:6, None])
    figure = TASK.figures(nn.Identity(), outputs, test, fitted())["confusion_matrix"]
    (axes,) = figure.axes
    counts = {(round(text.get_position()[1]), round(text.get_position()[0])): int(text.get_text()) for text in axes.texts}
    assert counts == {(t, p): sum((a, b) == (t, p) for a, b in zip(truth, said, strict=True)) for t in range(3) for p in range(3)}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2"]
    assert axes.get_title() == "4 of 6 rows right"


@pytest.mark.parametrize("given", [GREY, GREY.tolist(), GREY.astype(float), GREY.astype(np.int64)])
def test_whole_numbers_of_any_type_are_images(given: Any) -> None:
    raw = TASK.serving(fitted()).inputs(given)
    assert raw["image"].dtype == np.uint8
    np.testing.assert_array_equal(raw["image"][:, 0], GREY)


@pytest.mark.parametrize(
    "given",
    [
        GREY / 255,
        GREY.astype(int) - 1000,
        np.full((1, 6, 5), 256),
        np.full((1, 6, 5), np.nan),
        np.full((1, 6, 5), "1"),
        [["text"]],
        [[1, 2], [3]],
        None,
        {"image": 1},
    ],
    ids=["fractions", "negative", "256", "nan", "digits as text", "text", "ragged", "none", "a mapping"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_image_is_refused(given: Any) -> None:
    with pytest.raises(DataError):
        TASK.serving(fitted()).inputs(given)


def test_a_model_is_given_the_images_without_their_labels() -> None:
    raw = {"image": GREY, "label": LABELS}
    np.testing.assert_array_equal(TASK.serving(fitted()).inputs(TASK.serving(fitted()).example(raw))["image"][:, 0], GREY)
    assert "label" not in TASK.serving(fitted()).inputs(TASK.serving(fitted()).example(raw))


def test_only_what_the_task_defines_can_change_how_rows_are_encoded() -> None:
    assert CNN(filters=3).task_settings() == CNN().task_settings() == {"classes": [], "size": None, "channels": None}
    assert CNN(classes=("a", "b"), size=(8, 6)).task_settings() == {"classes": ["a", "b"], "size": [8, 6], "channels": None}


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def column(*values: Any) -> np.ndarray:
    """A column as a reader gives it."""
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


PNGS = {"grey": column(*(encoded(image) for image in GREY)), "colour": column(*(encoded(image) for image in COLOUR))}


@pytest.mark.parametrize(("images", "kind"), [(GREY, "grey"), (COLOUR, "colour")], ids=["grey", "colour"])
def test_encoded_pictures_are_learnt_from_and_encoded_as_their_pixels(images: np.ndarray, kind: str) -> None:
    assert fitted(PNGS[kind]) == fitted(images)
    np.testing.assert_array_equal(
        TASK.encode({"image": PNGS[kind]}, fitted(images))["image"], TASK.encode({"image": images}, fitted(images))["image"]
    )


def test_pictures_of_all_sizes_and_modes_are_brought_to_one() -> None:
    task = CNN(size=(8, 4), channels=3)
    mixed = column(*PNGS["grey"][:10], *PNGS["colour"][10:20], *GREY[20:25], *COLOUR[25:, :3])
    encoding = fitted(mixed, task=task)
    images = task.encode({"image": mixed, "label": LABELS}, encoding)["image"]
    assert (encoding.shape, images.shape, images.dtype) == ((3, 8, 4), (30, 3, 8, 4), np.uint8)
    for row, image in enumerate([*GREY[:10], *COLOUR[10:20], *GREY[20:25], *COLOUR[25:, :3]]):
        theirs = Image.fromarray(image).convert("RGB").resize((4, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[row].transpose(1, 2, 0), np.asarray(theirs))
    logits = task.network(encoding)(torch.from_numpy(images))
    assert logits.shape == (30, 3)
    assert logits.isfinite().all()


def test_the_row_of_another_size_is_named_when_learning_and_when_encoding() -> None:
    odd = column(*PNGS["grey"][:4], encoded(GREY[4, 1:]))
    with pytest.raises(DataError, match=r"^images are 5x5 grey, but those before are 6x5 grey; model.size and") as error:
        TASK.fit([{"image": odd, "label": LABELS[:5]}])
    assert error.value.row == 4
    with pytest.raises(DataError, match=r"^images are 5x5 grey, but those trained on are 6x5 grey") as error:
        TASK.encode({"image": odd[3:]}, fitted())
    assert error.value.row == 1


def test_a_batch_of_which_no_row_is_left_is_encoded_as_no_rows() -> None:
    nothing = {"image": column(), "label": LABELS[:0]}
    assert TASK.encode(nothing, fitted())["image"].shape == (0, 1, 6, 5)


@pytest.mark.parametrize(("images", "kind"), [(GREY, "grey"), (COLOUR, "colour")], ids=["grey", "colour"])
@pytest.mark.parametrize("task", [CNN(), CNN(size=(7, 9)), CNN(channels=1), CNN(size=(3, 3), channels=3)])
def test_the_example_of_a_registered_models_input_is_an_array_that_encodes_alike(images: np.ndarray, kind: str, task: CNN) -> None:
    encoding = fitted(images, task=task)
    example = task.serving(fitted()).example({"image": PNGS[kind][:8], "label": LABELS[:8]})
    assert example.dtype == np.uint8
    assert example.shape[1:] == (*encoding.shape[1:], *((3,) if encoding.shape[0] == 3 else ()))
    np.testing.assert_array_equal(task.serving(encoding).inputs(example)["image"], task.encode({"image": images[:8]}, encoding)["image"])


def test_a_caller_may_give_encoded_pictures() -> None:
    pngs = PNGS["grey"]
    for given in (pngs, pngs.tolist(), tuple(pngs), pd.Series(pngs), pd.DataFrame({"image": pngs}), pd.DataFrame({"image": list(GREY)})):
        np.testing.assert_array_equal(TASK.serving(fitted()).inputs(given)["image"][:, 0], GREY)


def test_a_table_without_images_is_told_its_columns() -> None:
    with pytest.raises(DataError, match=r"there is no column 'image'; did you mean data\.columns\.image=images"):
        TASK.serving(fitted()).inputs(pd.DataFrame({"images": PNGS["grey"], 3: 0}))


def test_the_path_of_a_picture_is_not_opened_for_a_caller() -> None:
    with pytest.raises(DataError, match="not the text '/etc/passwd'") as error:
        TASK.serving(fitted()).inputs([PNGS["grey"][0], "/etc/passwd"])
    assert error.value.row == 1


@pytest.mark.parametrize("settings", [{"size": (0, 5)}, {"size": (5,)}, {"size": 5}, {"channels": 2}, {"size": (5, 100_000)}])
def test_settings_that_no_picture_can_be_brought_to_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CNN(**settings)
