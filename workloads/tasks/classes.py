"""The part of a classification task that does not depend on what is classified: labels to indices, metrics, readable predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ..base import Arrays, DataError, Headline, Mean, Names, Rows, Serving, Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..judging import Judging

# N rows, B rows of a batch, K classes

_MOST_CLASSES, _MOST_SHARE = 50, 0.2  # more different numbers than both are a quantity


class Classification(Workload):
    """One of a fixed set of classes for each row. Raw and stored column: `label` (N,), integers or strings, stored as class indices.

    A task adds what is classified: `fit`, `encode`, `logits`, a ClassServing for its input, and to `check` what its input must be.
    """

    target_column: ClassVar[str | None] = "label"
    label_column: ClassVar[str | None] = "label"
    headline: ClassVar[Headline] = Headline("accuracy", "max")
    better: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "accuracy": "max",
        "loss": "min",
        "brier": "min",
        "precision": "max",
        "recall": "max",
        "f1": "max",
        "roc_auc": "max",
        "calibration_error": "min",
    }

    classes: Names = ()
    """Class names in index order; empty: the labels found in the training rows."""

    def check(self, raw: Arrays) -> None:
        labels_in(raw["label"])

    @abstractmethod
    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K) of the classes, or (B, 1) of the second of two."""

    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        """Cross-entropy (a sum) and accuracy, of a softmax or of a sigmoid."""
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        logits, label_B = self.logits(model, batch), batch["label"]
        if logits.shape[1] == 1:
            correct_B = (logits.squeeze(1) > 0) == (label_B == 1)
            loss = binary_cross_entropy_with_logits(logits.squeeze(1).float(), label_B.float(), reduction="sum")
        else:
            correct_B = logits.argmax(1) == label_B
            loss = cross_entropy(logits.float(), label_B, reduction="sum")
        return {"loss": Mean(loss, len(label_B)), "accuracy": Mean(correct_B.sum(), len(label_B))}

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        logits = self.logits(model, batch).float()
        if logits.shape[1] == 1:
            return {"probabilities": torch.cat([-logits, logits], 1).sigmoid()}
        return {"probabilities": logits.softmax(1)}

    def baselines(self, train: Rows, test: Rows, encoding: Any) -> dict[str, dict[str, float]]:
        """Accuracy of always predicting the commonest class of the training rows."""
        commonest = np.bincount(labels_of(train)).argmax()
        return {"majority_class": {"accuracy": float((labels_of(test) == commonest).mean())}}

    def judging(self, encoding: Any) -> Judging:
        from .judged import ClassJudging

        return ClassJudging(encoding.classes)


class ClassServing(Serving):
    """Predictions of a classifier; a subclass says how its input is given."""

    def decode(self, outputs: Arrays) -> dict[str, list]:
        """The likeliest class of each row, its probability, and all probabilities in the order of the classes."""
        p_BK, classes = outputs["probabilities"], self.encoding.classes
        best_B = p_BK.argmax(1)
        return {
            "label": [classes[k] for k in best_B],
            "probability": p_BK[np.arange(len(p_BK)), best_B].astype(float).tolist(),
            "probabilities": p_BK.astype(float).tolist(),
        }


def labels_in(labels: np.ndarray) -> set[Any]:
    """The different labels of a batch of raw rows. Raises DataError where one is missing, or can be no class."""
    return set(_unique(labels)[0])


class Labels:
    """The different labels of training rows, gathered batch by batch, and how many rows there were."""

    def __init__(self) -> None:
        self.rows, self._labels = 0, set[Any]()

    def of(self, batches: Iterable[Arrays]) -> Iterator[Arrays]:
        """Pass batches of raw rows on, gathering their labels. Raises DataError where a label is missing, or can be no class."""
        for raw in batches:
            self._labels |= labels_in(raw["label"])
            self.rows += len(raw["label"])
            yield raw

    def names(self, stated: tuple[str, ...]) -> tuple[str, ...]:
        """The stated class names, or those of the labels in their order.

        Raises DataError if there are fewer than two, or if they are measured numbers and not stated.
        """
        observed = tuple(dict.fromkeys(_class_name(label) for label in sorted(self._labels, key=_sort_key)))
        for names in (stated or observed, observed):
            if len(names) < 2:
                raise DataError(f"column label: a classifier needs two classes, but every training row is labelled {names[0]!r}")
        if not stated and self._measured():
            raise DataError(
                f"column label: {len(observed):,} different numbers in {self.rows:,} training rows look like a measured quantity, not like "
                "classes; to predict it as a number: raylway train mlp_regression data.source=… data.columns.target=… (the column's name); "
                "to take each number for a class: model.classes=[…]"
            )
        return stated or observed

    def _measured(self) -> bool:
        """Fractions among the labels, or more than 50 different numbers in less than five times as many rows."""
        numbers = [label for label in self._labels if isinstance(label, (int, float))]
        fractions = any(isinstance(number, float) and not number.is_integer() for number in numbers)
        return fractions or (len(numbers) > _MOST_CLASSES and len(numbers) > _MOST_SHARE * self.rows)


def encoded_label(raw: Arrays, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The stored column `label`, if raw rows have one: they lack it where they are to be predicted."""
    return {"label": class_index(raw["label"], classes)} if "label" in raw else {}


def class_index(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """int64 (N,): where each label stands in `classes`. Raises DataError for one that does not."""
    known = {name: index for index, name in enumerate(classes)}
    values, inverse = _unique(labels)
    index = np.array([known.get(str(value), known.get(_class_name(value), -1)) for value in values], dtype=np.int64)[inverse]
    if (index < 0).any():
        row = int(np.argmin(index))
        label = labels[row].item() if isinstance(labels[row], np.generic) else labels[row]
        stated = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
        raise DataError(f"column label: {label!r} is outside the classes {stated}", row)
    return index


def labels_of(rows: Rows) -> np.ndarray:
    """int64 (N,): the class index of every prepared row."""
    return rows.take(np.arange(len(rows)), ["label"])["label"]


def worst_mistakes(truth_N: np.ndarray, p_NK: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows that are wrong, the surest first."""
    wrong = np.flatnonzero(p_NK.argmax(1) != truth_N)
    return wrong[np.argsort(-p_NK[wrong].max(1), kind="stable")][:count]


def _unique(labels: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The different labels, and which of them each row has. Raises DataError where one is missing, or can be no class."""
    if labels.ndim != 1:
        raise DataError(f"column label: a value of it is an array of {labels.shape[1:]}, not a class's name or number")
    values = labels.tolist()
    # NaN alone differs from itself; in a CSV file an empty value among names is the empty text
    missing = np.array([label is None or label != label or label == "" for label in values], dtype=bool)
    if missing.any():
        raise DataError("column label: is missing", int(np.argmax(missing)))
    if labels.dtype != object:
        different, inverse = np.unique(labels, return_inverse=True)
        return different.tolist(), inverse
    if (odd := next((row for row, label in enumerate(values) if isinstance(label, (list, dict))), None)) is not None:
        raise DataError(f"column label: {str(values[odd])[:60]} is not a class's name or number", odd)
    places: dict[Any, int] = {}
    inverse = np.array([places.setdefault(label, len(places)) for label in values], dtype=np.int64)
    return list(places), inverse


def _class_name(label: Any) -> str:
    """A whole number as such: where another row lacks its label, a reader gives integers as floats. Bytes are what npz has for text."""
    if isinstance(label, bytes):
        return label.decode(errors="backslashreplace")
    return str(int(label) if isinstance(label, float) and label.is_integer() else label)


def _sort_key(label: Any) -> tuple[str, Any]:
    """Numbers before names: of several files one may hold numbers alone, where another spells its labels."""
    return ("", label) if isinstance(label, (int, float)) else (type(label).__name__, label)
