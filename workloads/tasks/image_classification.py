"""One label for each image, out of a fixed set of classes (softmax)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ..base import Arrays, DataError, Encoding, Headline, Mean, Rows, Workload, choose_columns
from .classes import (
    BETTER,
    Classes,
    class_index,
    class_names,
    labels_in,
    labels_of,
    majority_class,
    readable,
    softmax_scores,
    worst_mistakes,
)
from .pictures import Shape, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from ..judging import Judging

# N rows, B rows of a batch, C channels, H height, W width, K classes

Pixels = Annotated[int, Field(gt=0, le=8192)]


class ImageEncoding(Encoding):
    """Class names in index order, the images' shape (C, H, W), and the pixels' mean and deviation by channel."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class ImageClassification(Workload):
    """Raw rows: `image` uint8 (N, H, W) or (N, H, W, C), or (N,) encoded pictures or arrays; `label` (N,), integers or strings."""

    task: ClassVar[str] = "image classification"
    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    label_column: ClassVar[str | None] = "label"
    headline: ClassVar[Headline] = Headline("accuracy", "max")
    better: ClassVar[Mapping[str, Literal["max", "min"]]] = BETTER
    encoding_type: ClassVar[type[Encoding]] = ImageEncoding
    files: ClassVar[tuple[str, ...]] = ("image",)
    requires: ClassVar[tuple[str, ...]] = ("pillow",)

    classes: Classes = ()
    """Class names in index order; empty: the labels found in the training rows."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width that every image is resized to, its aspect not kept; none: all must be of one size."""
    channels: Literal[1, 3] | None = None
    """1: every image becomes grey, 3: in colour, alpha dropped; none: as they are."""

    def check(self, raw: Arrays) -> None:
        labels_in(raw["label"])
        pixels(raw["image"], size=self.size, channels=self.channels)

    def fit(self, batches: Iterable[Arrays]) -> ImageEncoding:
        shape: Shape | None = None
        labels, count = set(), 0
        total = square = np.zeros(1)
        for raw in batches:
            if not len(raw["label"]):
                continue
            x_NCHW = self._pixels(raw["image"], shape=shape)
            shape = x_NCHW.shape[1:]
            labels.update(labels_in(raw["label"]))
            count += x_NCHW.size // x_NCHW.shape[1]
            total = total + x_NCHW.sum(axis=(0, 2, 3), dtype=np.float64)
            square = square + np.square(x_NCHW, dtype=np.float64).sum(axis=(0, 2, 3))
        if shape is None:
            raise DataError("there are no training rows")
        classes = class_names(self.classes, labels)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
        return ImageEncoding(classes=classes, shape=shape, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    def encode(self, raw: Arrays, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        x_NCHW = self._pixels(raw["image"], shape=encoding.shape, known="trained on")
        encoded = {"image": np.ascontiguousarray(x_NCHW)}
        if "label" in raw:
            encoded["label"] = class_index(raw["label"], encoding.classes)
        return encoded

    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        return softmax_scores(model(batch["image"]), batch["label"])

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"probabilities": model(batch["image"]).float().softmax(1)}

    def decode(self, outputs: Arrays, encoding: ImageEncoding) -> dict[str, list]:
        return readable(outputs["probabilities"], encoding.classes)

    def baselines(self, train: Rows, test: Rows, encoding: ImageEncoding) -> dict[str, dict[str, float]]:
        return {"majority_class": majority_class(train, test)}

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: ImageEncoding) -> dict[str, Figure]:
        from .figures import confusion_matrix, worst_images

        truth_N, p_NK = labels_of(test), outputs["probabilities"]
        worst = worst_mistakes(truth_N, p_NK, 16)
        return {
            "confusion_matrix": confusion_matrix(truth_N, p_NK.argmax(1), encoding.classes),
            "worst_mistakes": worst_images(test.take(worst, ["image"])["image"], truth_N[worst], p_NK[worst], encoding.classes),
        }

    def judging(self, encoding: ImageEncoding) -> Judging:
        from .judged_classes import ClassJudging

        return ClassJudging(encoding.classes)

    def model_input(self, raw: Arrays) -> np.ndarray:
        if raw["image"].dtype != object:
            return raw["image"]
        x_NCHW = self._pixels(raw["image"])
        return x_NCHW[:, 0] if x_NCHW.shape[1] == 1 else x_NCHW.transpose(0, 2, 3, 1)

    def inputs(self, given: Any, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        """An array (rows, height, width) or (rows, height, width, channels), or lists of that shape, of whole numbers of any type; encoded
        pictures (PNG, JPEG …) as a list of bytes; or a DataFrame with a column `image` of either."""
        if hasattr(given, "columns"):
            choose_columns(("image",), [str(name) for name in given.columns])
            given = given["image"].to_numpy()
        return self.encode({"image": given}, encoding)

    def _pixels(self, given: Any, **known: Any) -> np.ndarray:
        return pixels(given, size=self.size, channels=self.channels, **known)
