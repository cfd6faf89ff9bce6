"""One label for each image, out of a fixed set of classes (softmax)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import field_validator

from ..base import Arrays, DataError, Encoding, Headline, Mean, Rows, Workload

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

    classes: tuple[str, ...] = ()
    """Class names in index order; empty: the labels found in the training rows."""

    @field_validator("classes")
    @classmethod
    def _no_class_twice(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError(f"a class is stated twice: {', '.join(classes)}")
        return classes

    def fit(self, batches: Iterable[Arrays]) -> ImageEncoding:
        shape, labels, count = None, set(), 0
        total = square = np.zeros(1)
        for raw in batches:
            x_NCHW = _channels_first(raw["image"])
            if shape not in (None, x_NCHW.shape[1:]):
                raise DataError(f"images of two sizes: {_size(shape)} and {_size(x_NCHW.shape[1:])}; all must be of one")
            shape = x_NCHW.shape[1:]
            labels.update(np.unique(raw["label"]).tolist())
            count += x_NCHW.size // shape[0]
            total = total + x_NCHW.sum(axis=(0, 2, 3), dtype=np.float64)
            square = square + np.square(x_NCHW, dtype=np.float64).sum(axis=(0, 2, 3))
        if shape is None:
            raise DataError("there are no training rows")
        classes = self.classes or tuple(str(label) for label in sorted(labels))
        if len(classes) < 2:
            raise DataError(f"a classifier needs two classes, but every training row is labelled {classes[0]!r}")
        mean = total / count
        deviation = np.sqrt(np.maximum(square / count - mean**2, 1e-12))
        return ImageEncoding(classes=classes, shape=shape, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    def encode(self, raw: Arrays, encoding: ImageEncoding) -> dict[str, np.ndarray]:
        x_NCHW = _channels_first(raw["image"])
        if x_NCHW.shape[1:] != encoding.shape:
            raise DataError(f"images are {_size(x_NCHW.shape[1:])}, but the encoding was made for {_size(encoding.shape)}")
        encoded = {"image": np.ascontiguousarray(x_NCHW)}
        if "label" in raw:
            encoded["label"] = _class_index(raw["label"], encoding.classes)
        return encoded

    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        from torch.nn.functional import cross_entropy

        logits_BK, label_B = model(batch["image"]), batch["label"]
        correct = (logits_BK.argmax(1) == label_B).sum()
        loss = cross_entropy(logits_BK.float(), label_B, reduction="sum")
        return {"loss": Mean(loss, len(label_B)), "accuracy": Mean(correct, len(label_B))}

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"probabilities": model(batch["image"]).float().softmax(1)}

    def decode(self, outputs: Arrays, encoding: ImageEncoding) -> dict[str, list]:
        p_BK = outputs["probabilities"]
        best_B = p_BK.argmax(1)
        return {
            "label": [encoding.classes[k] for k in best_B],
            "probability": p_BK[np.arange(len(p_BK)), best_B].astype(float).tolist(),
            "probabilities": p_BK.astype(float).tolist(),
        }

    def baseline(self, train: Rows, test: Rows, encoding: ImageEncoding) -> dict[str, float]:
        """Always answering the training rows' commonest class."""
        commonest = np.bincount(_labels(train), minlength=len(encoding.classes)).argmax()
        return {"accuracy": float((_labels(test) == commonest).mean())}

    def figures(self, outputs: Arrays, rows: Rows, encoding: ImageEncoding) -> dict[str, Figure]:
        from .figures import confusion_matrix

        predicted_N = outputs["probabilities"].argmax(1)
        return {"confusion_matrix": confusion_matrix(_labels(rows), predicted_N, encoding.classes)}

    def model_input(self, raw: Arrays) -> np.ndarray:
        return raw["image"]

    def raw_from_input(self, given: Any) -> Arrays:
        try:
            images = np.asarray(given)
            whole = images.dtype == np.uint8 or np.array_equal(images, images.astype(np.uint8))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"images must be an array of whole numbers from 0 to 255 (uint8): {error}") from None
        if not whole:
            raise DataError(f"images must be whole numbers from 0 to 255 (uint8), not {images.dtype}")
        return {"image": images.astype(np.uint8)}


def _labels(rows: Rows) -> np.ndarray:
    return rows.take(np.arange(len(rows)), ["label"])["label"]


def _channels_first(images: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, C) to (N, C, H, W), a view."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        return images.transpose(0, 3, 1, 2)
    raise DataError(f"images must be (rows, height, width) or (rows, height, width, channels), not {images.shape}")


def _class_index(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    known = {name: index for index, name in enumerate(classes)}
    values, inverse = np.unique(labels, return_inverse=True)
    index = np.array([known.get(str(value), -1) for value in values.tolist()], dtype=np.int64)[inverse]
    if (index < 0).any():
        row = int(np.argmin(index))
        raise DataError(f"label {labels[row].item()!r} is outside the classes {', '.join(classes)}", row)
    return index


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")
