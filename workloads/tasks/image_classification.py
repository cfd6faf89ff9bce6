"""One label for each image, out of a fixed set of classes (softmax)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..base import Arrays, DataError, Encoding, Headline, Mean, Rows, Workload
from .classes import (
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

# N rows, B rows of a batch, C channels, H height, W width, K classes


class ImageEncoding(Encoding):
    """Class names in index order, the images' shape (C, H, W), and the pixels' mean and deviation by channel."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class ImageClassification(Workload):
    """Raw rows: `image` uint8 (N, H, W) or (N, H, W, C), all of one size; `label` (N,), integers or strings."""

    task: ClassVar[str] = "image classification"
    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    headline: ClassVar[Headline] = Headline("accuracy", "max")
    encoding_type: ClassVar[type[Encoding]] = ImageEncoding

    classes: Classes = ()
    """Class names in index order; empty: the labels found in the training rows."""

    def fit(self, batches: Iterable[Arrays]) -> ImageEncoding:
        shape, labels, count = None, set(), 0
        total = square = np.zeros(1)
        for raw in batches:
            x_NCHW = _pixels(raw["image"])
            if shape not in (None, x_NCHW.shape[1:]):
                raise DataError(f"images are {_kind(shape)} before, but {_kind(x_NCHW.shape[1:])} from here; all must be of one kind", 0)
            shape = x_NCHW.shape[1:]
            labels.update(labels_in(raw["label"]))
            count += x_NCHW.size // shape[0]
            total = total + x_NCHW.sum(axis=(0, 2, 3), dtype=np.float64)
            square = square + np.square(x_NCHW, dtype=np.float64).sum(axis=(0, 2, 3))
        if shape is None:
            raise DataError("there are no training rows")
        classes = class_names(self.classes, labels)
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
        return ImageEncoding(classes=classes, shape=shape, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    def encode(self, raw: Arrays, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        x_NCHW = _pixels(raw["image"])
        if x_NCHW.shape[1:] != encoding.shape:
            raise DataError(f"images are {_kind(x_NCHW.shape[1:])}, but those trained on are {_kind(encoding.shape)}")
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

    def model_input(self, raw: Arrays) -> np.ndarray:
        return raw["image"]

    def inputs(self, given: Any, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        """An array (rows, height, width) or (rows, height, width, channels), or lists of that shape, of whole numbers of any type."""
        return self.encode({"image": given}, encoding)


def _pixels(given: Any) -> np.ndarray:
    """uint8 (N, C, H, W): a view where `given` is an array of bytes. Raises DataError."""
    try:
        images = np.asarray(given)
    except ValueError:  # lists of several lengths
        raise DataError("images differ in height or width; all must be of one size", _odd_one(given)) from None
    if images.ndim not in (3, 4):
        alone = "; one image alone is given as image[None]" if images.ndim == 2 else ""
        found = images.shape or type(given).__name__
        raise DataError(f"images must be (rows, height, width) or (rows, height, width, channels), not {found}{alone}")
    if images.dtype != np.uint8:
        images = _whole(images)
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _whole(images: np.ndarray) -> np.ndarray:
    if images.dtype.kind not in "biuf":
        raise DataError(f"images must be whole numbers from 0 to 255, not {images.dtype}")
    right = (images >= 0) & (images <= 255) & (images == np.floor(images))
    if not right.all():
        place = np.unravel_index(np.argmin(right), images.shape)
        raise DataError(f"images must be whole numbers from 0 to 255, but a pixel is {images[place]:g}", int(place[0]))
    return images.astype(np.uint8)


def _odd_one(given: Any) -> int | None:
    """The first row of `given` that is not shaped like the one before, if the rows themselves are arrays."""
    try:
        shapes = [np.shape(image) for image in given]
    except ValueError:
        return None
    return next((row for row in range(1, len(shapes)) if shapes[row] != shapes[row - 1]), None)


def _kind(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width} " + {1: "grey", 3: "in colour"}.get(channels, f"of {channels} channels")
