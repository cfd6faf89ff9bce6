"""One label for each image, out of a fixed set of classes (softmax)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from ..base import Arrays, Encoding, Rows, Serving, choose_columns
from .classes import Classification, ClassServing, Labels, encoded_label, labels_of, worst_mistakes
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
    """Height and width in pixels that every image is resized to, without keeping its aspect; none: all must have one size."""
    channels: Literal[1, 3] | None = None
    """Channels of every image: 1 converts to grey, 3 to RGB without alpha; none: as they are."""

    def check(self, raw: Arrays) -> None:
        super().check(raw)
        self.pixels(raw["image"])

    def fit(self, batches: Iterable[Arrays]) -> ImageEncoding:
        shape: Shape | None = None
        labels, count = Labels(), 0
        total = square = np.zeros(1)
        for raw in labels.of(batches):
            x_NCHW = self.pixels(raw["image"], shape=shape)
            shape = x_NCHW.shape[1:]
            count += x_NCHW.size // x_NCHW.shape[1]
            total = total + x_NCHW.sum(axis=(0, 2, 3), dtype=np.float64)
            square = square + np.square(x_NCHW, dtype=np.float64).sum(axis=(0, 2, 3))
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
        classes = labels.names(self.classes)
        return ImageEncoding(classes=classes, shape=cast("Shape", shape), mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    def encode(self, raw: Arrays, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        x_NCHW = self.pixels(raw["image"], shape=encoding.shape, known="trained on")
        return {"image": np.ascontiguousarray(x_NCHW)} | encoded_label(raw, encoding.classes)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["image"])

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: ImageEncoding) -> dict[str, Figure]:
        from . import drawing

        truth_N, p_NK = labels_of(test), outputs["probabilities"]
        worst = worst_mistakes(truth_N, p_NK, 16)
        return {
            "confusion_matrix": drawing.confusion_matrix(truth_N, p_NK.argmax(1), encoding.classes),
            "worst_mistakes": drawing.worst_images(test.take(worst, ["image"])["image"], truth_N[worst], p_NK[worst], encoding.classes),
        }

    def pixels(self, given: Any, **known: Any) -> np.ndarray:
        """uint8 (N, C, H, W), brought to `size` and `channels`."""
        return pixels(given, size=self.size, channels=self.channels, **known)
