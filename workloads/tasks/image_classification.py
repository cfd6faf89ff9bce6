"""One label for each image, out of a fixed set of classes (softmax)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ..base import Arrays, DataError, Encoding, Rows, Serving, choose_columns
from .classes import Classification, ClassServing, Labels, class_index, labels_in, labels_of, worst_mistakes
from .pictures import Shape, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

# N rows, B rows of a batch, C channels, H height, W width, K classes

Pixels = Annotated[int, Field(gt=0, le=8192)]


class ImageEncoding(Encoding):
    """Class names in index order, the images' shape (C, H, W), and the pixels' mean and deviation by channel."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class ImageServing(ClassServing):
    """Images in, classes out."""

    def example(self, raw: Arrays) -> np.ndarray:
        if raw["image"].dtype != object:
            return raw["image"]
        x_NCHW = self.workload.pixels(raw["image"])
        return x_NCHW[:, 0] if x_NCHW.shape[1] == 1 else x_NCHW.transpose(0, 2, 3, 1)

    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        """An array (rows, height, width) or (rows, height, width, channels), or lists of that shape, of whole numbers of any type; encoded
        pictures (PNG, JPEG …) as a list of bytes; or a DataFrame with a column `image` of either."""
        if hasattr(given, "columns"):
            choose_columns(("image",), [str(name) for name in given.columns])
            given = given["image"].to_numpy()
        return self.encode({"image": given})


class ImageClassification(Classification):
    """Raw rows: `image` uint8 (N, H, W) or (N, H, W, C), or (N,) encoded pictures or arrays; `label` (N,), integers or strings."""

    task: ClassVar[str] = "image classification"
    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    encoding_type: ClassVar[type[Encoding]] = ImageEncoding
    serving_type: ClassVar[type[Serving]] = ImageServing
    files: ClassVar[tuple[str, ...]] = ("image",)
    requires: ClassVar[tuple[str, ...]] = ("pillow",)

    size: tuple[Pixels, Pixels] | None = None
    """Height and width that every image is resized to, its aspect not kept; none: all must be of one size."""
    channels: Literal[1, 3] | None = None
    """1: every image becomes grey, 3: in colour, alpha dropped; none: as they are."""

    def check(self, raw: Arrays) -> None:
        labels_in(raw["label"])
        pixels(raw["image"], size=self.size, channels=self.channels)

    def fit(self, batches: Iterable[Arrays]) -> ImageEncoding:
        shape: Shape | None = None
        labels, count = Labels(), 0
        total = square = np.zeros(1)
        for raw in batches:
            if not len(raw["label"]):
                continue
            x_NCHW = self.pixels(raw["image"], shape=shape)
            shape = x_NCHW.shape[1:]
            labels.add(raw["label"])
            count += x_NCHW.size // x_NCHW.shape[1]
            total = total + x_NCHW.sum(axis=(0, 2, 3), dtype=np.float64)
            square = square + np.square(x_NCHW, dtype=np.float64).sum(axis=(0, 2, 3))
        if shape is None:
            raise DataError("there are no training rows")
        classes = labels.names(self.classes)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
        return ImageEncoding(classes=classes, shape=shape, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    def encode(self, raw: Arrays, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        x_NCHW = self.pixels(raw["image"], shape=encoding.shape, known="trained on")
        encoded = {"image": np.ascontiguousarray(x_NCHW)}
        if "label" in raw:
            encoded["label"] = class_index(raw["label"], encoding.classes)
        return encoded

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["image"])

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: ImageEncoding) -> dict[str, Figure]:
        from .judged_classes import confusion_matrix

        truth_N, p_NK = labels_of(test), outputs["probabilities"]
        worst = worst_mistakes(truth_N, p_NK, 16)
        return {
            "confusion_matrix": confusion_matrix(truth_N, p_NK.argmax(1), encoding.classes),
            "worst_mistakes": worst_images(test.take(worst, ["image"])["image"], truth_N[worst], p_NK[worst], encoding.classes),
        }

    def pixels(self, given: Any, **known: Any) -> np.ndarray:
        """uint8 (N, C, H, W), brought to `size` and `channels`."""
        return pixels(given, size=self.size, channels=self.channels, **known)


def worst_images(images_NCHW: np.ndarray, truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Misclassified images, each with its true class and the predicted one."""
    from matplotlib.figure import Figure

    columns = 4
    rows = max(1, -(-len(images_NCHW) // columns))
    figure = Figure(figsize=(2.2 * columns, 0.4 + 2.4 * rows))
    # all on one pair of axes: with a pair for each, these took most of the time that a run's pictures take
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / (0.4 + 2.4 * rows)))
    axes.axis("off")
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    for place, (image_CHW, truth, p_K) in enumerate(zip(images_NCHW, truth_N, p_NK, strict=True)):
        row, column = divmod(place, columns)
        _, height, width = image_CHW.shape
        tall, wide = 0.84 * height / max(height, width), 0.9 * width / max(height, width)
        image = image_CHW.transpose(1, 2, 0) if len(image_CHW) == 3 else image_CHW[0]
        middle, foot = column + 0.5, row + 0.56 + tall / 2
        axes.imshow(image, cmap="gray", extent=(middle - wide / 2, middle + wide / 2, foot, foot - tall), aspect="auto")
        predicted = int(p_K.argmax())
        mistake = f"{classes[truth]}, predicted {classes[predicted]} ({p_K[predicted]:.2f})"
        axes.text(
            middle,
            row + 0.11,
            mistake,
            fontsize=9,
            ha="center",
            va="bottom",
        )
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    figure.suptitle("The surest mistakes" if len(images_NCHW) else "No mistakes")
    return figure
