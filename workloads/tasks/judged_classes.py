"""Metrics and figures of classifiers: accuracy, calibration, and precision, recall and F1 of each class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..judging import Judged, Judging, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# N examples, K classes

_BINS, _NAME_LETTERS = 10, 40
_MOST_RANKED = 20
"""Most classes whose ROC curves are computed: each is sorted by itself."""


class ClassJudging(Judging):
    """Examples with a `label`, outputs with `probabilities`. Metrics by scikit-learn, but for the calibration error, which it lacks."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)

    def judge(self, outputs: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> Judged:
        truth_N, p_NK = examples["label"].astype(np.int64), outputs["probabilities"].astype(np.float64)
        one_N = np.ones(len(truth_N))
        given_N = p_NK[np.arange(len(p_NK)), truth_N]
        distance_N = np.square(p_NK - np.eye(len(self._classes))[truth_N]).sum(1)
        if len(self._classes) == 2:  # as scikit-learn counts it: the second class alone
            distance_N = distance_N / 2
        scores = {
            "accuracy": Score((p_NK.argmax(1) == truth_N).astype(np.float64), one_N),
            "loss": Score(-np.log(np.maximum(given_N, np.finfo(np.float32).tiny)), one_N),
            "brier": Score(distance_N, one_N),
        }
        return Judged({"truth": truth_N, "probabilities": p_NK}, scores)

    def aligned(self, judged: Judged, by: Judging) -> Judged:
        if not isinstance(by, ClassJudging) or set(by._classes) != set(self._classes):
            theirs = ", ".join(by._classes) if isinstance(by, ClassJudging) else "none"
            raise ValueError(f"its classes are {theirs}, not {', '.join(self._classes)}")
        if by._classes == self._classes:
            return judged
        place = {name: number for number, name in enumerate(self._classes)}
        truth_N = np.array([place[name] for name in by._classes])[judged.columns["truth"]]
        order = [by._classes.index(name) for name in self._classes]
        return self.judge({"probabilities": judged.columns["probabilities"][:, order]}, {"label": truth_N})

    def joint_metrics(self, judged: Judged) -> dict[str, float]:
        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        metrics = self._by_class(truth_N, p_NK.argmax(1))
        if len(self._classes) <= _MOST_RANKED:
            metrics["roc_auc"] = _roc_auc(truth_N, p_NK)
        return metrics | {"calibration_error": _calibration_error(truth_N, p_NK)}

    def table(self, judged: Judged) -> dict[str, Any]:
        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        predicted_N, names = p_NK.argmax(1), np.array(self._classes)
        return {
            "label": names[truth_N],
            "predicted": names[predicted_N],
            "correct": predicted_N == truth_N,
            "probability": p_NK[np.arange(len(p_NK)), predicted_N],
            "loss": judged.scores["loss"].total,
            "probabilities": p_NK,
        }

    def details(self, judged: Judged) -> dict[str, Any]:
        """`calibration`: rows, mean confidence and accuracy by tenths of the predicted probability."""
        confidence_N, correct_N = _confidence(judged.columns["truth"], judged.columns["probabilities"])
        accuracy_B, confidence_B = _curve(confidence_N, correct_N)
        rows_B = _rows_of_bins(confidence_N)
        bins = [
            {"rows": int(rows), "confidence": float(confidence), "accuracy": float(accuracy)}
            for rows, confidence, accuracy in zip(rows_B, confidence_B, accuracy_B, strict=True)
        ]
        return {"calibration": bins}

    def figures(self, judged: Judged) -> dict[str, Figure]:
        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        confidence_N, correct_N = _confidence(truth_N, p_NK)
        drawn = {
            "confusion_matrix": confusion_matrix(truth_N, p_NK.argmax(1), self._classes),
            "reliability": reliability(*_curve(confidence_N, correct_N), _rows_of_bins(confidence_N)),
        }
        return drawn | ({"roc_curves": roc_curves(truth_N, p_NK, self._classes)} if len(self._classes) <= _MOST_RANKED else {})

    def _by_class(self, truth_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
        """precision, recall and f1 of each class, and their means over the classes that occur; an undefined one counts as 0."""
        from sklearn.metrics import precision_recall_fscore_support

        size = len(self._classes)
        # counted once, so that a resample costs the same for any N
        cells, rows = np.unique(truth_N * size + predicted_N, return_counts=True)
        each = precision_recall_fscore_support(
            cells // size, cells % size, labels=np.arange(size), sample_weight=rows, average=None, zero_division=0
        )
        occurs_K = each[3] > 0
        metrics = {name: float(values[occurs_K].mean()) for name, values in zip(("precision", "recall", "f1"), each, strict=False)}
        for k in np.flatnonzero(occurs_K):
            for name, values in zip(("precision", "recall", "f1"), each, strict=False):
                metrics[f"class/{self._classes[k]}/{name}"] = float(values[k])
        return metrics


def _roc_auc(truth_N: np.ndarray, p_NK: np.ndarray) -> float:
    """Area under the ROC curve: of the second class of two, else the mean of each class against the rest, over the classes that occur."""
    from sklearn.metrics import roc_auc_score

    occurring = [k for k in range(p_NK.shape[1]) if 0 < (truth_N == k).sum() < len(truth_N)]
    occurring = occurring[-1:] if p_NK.shape[1] == 2 else occurring
    return float(roc_auc_score(truth_N[:, None] == np.array(occurring), p_NK[:, occurring])) if occurring else float("nan")


def _calibration_error(truth_N: np.ndarray, p_NK: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., 2015): mean distance of confidence and accuracy over rows, in ten equal bins."""
    confidence_N, correct_N = _confidence(truth_N, p_NK)
    accuracy_B, confidence_B = _curve(confidence_N, correct_N)
    rows_B = _rows_of_bins(confidence_N)
    return float((np.abs(accuracy_B - confidence_B) * rows_B).sum() / rows_B.sum())


def _confidence(truth_N: np.ndarray, p_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the predicted class, and 1 where it is the true one."""
    predicted_N = p_NK.argmax(1)
    return np.clip(p_NK[np.arange(len(p_NK)), predicted_N], 0, 1), (predicted_N == truth_N).astype(np.int64)


def _curve(confidence_N: np.ndarray, correct_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy, mean confidence) of each bin that has rows."""
    from sklearn.calibration import calibration_curve

    with warnings.catch_warnings():  # scikit-learn (1.9) warns of labels that are all 0 or all 1
        warnings.simplefilter("ignore")
        return calibration_curve(correct_N, confidence_N, n_bins=_BINS, pos_label=1)


def _rows_of_bins(confidence_N: np.ndarray) -> np.ndarray:
    """Rows of each bin that has any, the bins cut as `calibration_curve` cuts them."""
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, _BINS + 1)[1:-1], confidence_N), minlength=_BINS)
    return rows[rows > 0]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class)."""
    from matplotlib.figure import Figure

    shown = [name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…" for name in classes]
    labels = 0.3 + 0.1 * max(map(len, shown))
    side = max(3.8, 0.55 * len(classes))
    width, height = labels + 0.4 + side + 0.2, labels + 0.4 + side + 0.4
    figure = Figure(figsize=(width, height))
    # placed by hand, for a layout that is worked out draws everything twice
    axes = figure.add_axes(((labels + 0.4) / width, (labels + 0.4) / height, side / width, side / height))
    places = np.arange(len(classes))
    # counted and drawn here, for scikit-learn's display costs a second of import in every process that draws (1.9)
    counts_KK = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts_KK, (truth, predicted), 1)
    axes.imshow(counts_KK, cmap="Blues", vmin=0)
    for row, column in np.ndindex(counts_KK.shape):
        dark = counts_KK[row, column] > counts_KK.max() / 2
        axes.text(column, row, str(counts_KK[row, column]), ha="center", va="center", color="white" if dark else "#08306b")
    axes.set_xticks(places, shown, rotation="vertical")
    axes.set_yticks(places, shown)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(counts_KK)} of {counts_KK.sum()} rows right")
    return figure


def roc_curves(truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """True against false positives at every threshold: of the second class where there are two, else of each against the rest."""
    from matplotlib.figure import Figure
    from sklearn.metrics import RocCurveDisplay

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    for k in range(1 if len(classes) == 2 else 0, len(classes)):
        if 0 < (truth_N == k).sum() < len(truth_N):  # else there is no curve
            RocCurveDisplay.from_predictions(truth_N == k, p_NK[:, k], name=classes[k], ax=axes)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(title="ROC; dotted: by chance", xlabel="false positive rate", ylabel="true positive rate")
    return figure


def reliability(accuracy_B: np.ndarray, confidence_B: np.ndarray, rows_B: np.ndarray) -> Figure:
    """Accuracy by confidence, and the number of rows behind each point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    axes.plot(confidence_B, accuracy_B, marker="o", label="this model")
    axes.set(title="Reliability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    below.bar(confidence_B, rows_B, width=0.05)
    below.set(xlabel="probability of the predicted class", ylabel="rows")
    return figure
