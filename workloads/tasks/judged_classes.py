"""How classifiers are judged: accuracy and its kin, probabilities against what came true, each class by itself."""

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
"""Most classes whose ROC curves are looked at: each is sorted by itself."""


class ClassJudging(Judging):
    """Examples with a `label`, outputs with `probabilities`. Scores by scikit-learn, but for the calibration error, which it has not."""

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

    def translated(self, judged: Judged, by: Judging) -> Judged:
        if not isinstance(by, ClassJudging) or set(by._classes) != set(self._classes):
            theirs = ", ".join(by._classes) if isinstance(by, ClassJudging) else "none"
            raise ValueError(f"its classes are {theirs}, not {', '.join(self._classes)}")
        if by._classes == self._classes:
            return judged
        place = {name: number for number, name in enumerate(self._classes)}
        truth_N = np.array([place[name] for name in by._classes])[judged.columns["truth"]]
        order = [by._classes.index(name) for name in self._classes]
        return self.judge({"probabilities": judged.columns["probabilities"][:, order]}, {"label": truth_N})

    def others(self, judged: Judged) -> dict[str, float]:
        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        found = self._by_class(truth_N, p_NK.argmax(1))
        if len(self._classes) <= _MOST_RANKED:
            found["roc_auc"] = _roc_auc(truth_N, p_NK)
        return found | {"calibration_error": _calibration_error(truth_N, p_NK)}

    def table(self, judged: Judged) -> dict[str, Any]:
        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        said_N, names = p_NK.argmax(1), np.array(self._classes)
        return {
            "label": names[truth_N],
            "predicted": names[said_N],
            "correct": said_N == truth_N,
            "probability": p_NK[np.arange(len(p_NK)), said_N],
            "loss": judged.scores["loss"].total,
            "probabilities": p_NK,
        }

    def details(self, judged: Judged) -> dict[str, Any]:
        """`calibration`: of the rows whose probability falls into each tenth, how many, how sure, how often right."""
        sure_N, right_N = _confidence(judged.columns["truth"], judged.columns["probabilities"])
        right_B, sure_B = _curve(sure_N, right_N)
        rows_B = _rows_of_bins(sure_N)
        bins = [
            {"rows": int(rows), "confidence": float(sure), "accuracy": float(right)}
            for rows, sure, right in zip(rows_B, sure_B, right_B, strict=True)
        ]
        return {"calibration": bins}

    def figures(self, judged: Judged) -> dict[str, Figure]:
        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        sure_N, right_N = _confidence(truth_N, p_NK)
        drawn = {
            "confusion_matrix": confusion_matrix(truth_N, p_NK.argmax(1), self._classes),
            "reliability": reliability(*_curve(sure_N, right_N), _rows_of_bins(sure_N)),
        }
        return drawn | ({"roc_curves": roc_curves(truth_N, p_NK, self._classes)} if len(self._classes) <= _MOST_RANKED else {})

    def _by_class(self, truth_N: np.ndarray, said_N: np.ndarray) -> dict[str, float]:
        """precision, recall and f1: their means over the classes that occur, and of each class; what cannot be told counts as 0."""
        from sklearn.metrics import precision_recall_fscore_support

        size = len(self._classes)
        cells, rows = np.unique(truth_N * size + said_N, return_counts=True)  # counted once, so that a resample costs the same for any N
        each = precision_recall_fscore_support(
            cells // size, cells % size, labels=np.arange(size), sample_weight=rows, average=None, zero_division=0
        )
        occurs_K = each[3] > 0
        found = {name: float(values[occurs_K].mean()) for name, values in zip(("precision", "recall", "f1"), each, strict=False)}
        for k in np.flatnonzero(occurs_K):
            for name, values in zip(("precision", "recall", "f1"), each, strict=False):
                found[f"class/{self._classes[k]}/{name}"] = float(values[k])
        return found


def _roc_auc(truth_N: np.ndarray, p_NK: np.ndarray) -> float:
    """Area under the ROC curve: of the second class of two, else each class against the rest, their mean over those there are."""
    from sklearn.metrics import roc_auc_score

    there = [k for k in range(p_NK.shape[1]) if 0 < (truth_N == k).sum() < len(truth_N)]
    there = there[-1:] if p_NK.shape[1] == 2 else there
    return float(roc_auc_score(truth_N[:, None] == np.array(there), p_NK[:, there])) if there else float("nan")


def _calibration_error(truth_N: np.ndarray, p_NK: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., 2015): how far sureness and rightness are apart, a mean over rows in ten equal bins."""
    sure_N, right_N = _confidence(truth_N, p_NK)
    right_B, sure_B = _curve(sure_N, right_N)
    rows_B = _rows_of_bins(sure_N)
    return float((np.abs(right_B - sure_B) * rows_B).sum() / rows_B.sum())


def _confidence(truth_N: np.ndarray, p_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the class that was said, and whether it came true."""
    said_N = p_NK.argmax(1)
    return np.clip(p_NK[np.arange(len(p_NK)), said_N], 0, 1), (said_N == truth_N).astype(np.int64)


def _curve(sure_N: np.ndarray, right_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how often right, how sure) in each bin that has rows."""
    from sklearn.calibration import calibration_curve

    with warnings.catch_warnings():  # of rows that are all right, or all wrong, scikit-learn (1.9) doubts that they are labels
        warnings.simplefilter("ignore")
        return calibration_curve(right_N, sure_N, n_bins=_BINS, pos_label=1)


def _rows_of_bins(sure_N: np.ndarray) -> np.ndarray:
    """Rows of each bin that has any, the bins cut as `calibration_curve` cuts them."""
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, _BINS + 1)[1:-1], sure_N), minlength=_BINS)
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


def reliability(right_B: np.ndarray, sure_B: np.ndarray, rows_B: np.ndarray) -> Figure:
    """How often what was said came true, by how sure it was said, and how many rows each point stands for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as sure as right")
    axes.plot(sure_B, right_B, marker="o", label="this model")
    axes.set(title="Is it as right as it is sure?", ylabel="share of rows that are right", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    below.bar(sure_B, rows_B, width=0.05)
    below.set(xlabel="probability of the class that was said", ylabel="rows")
    return figure
