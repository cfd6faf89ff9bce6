"""Metrics and figures of classifiers and of forecasts.

Imported only where a model is judged: what a task's file imports at its top is part of the fingerprint of its data, and a new metric
needs no new data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import Arrays
from ..judging import ErrorJudging, Judged, Judging, Score, over_examples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# N examples, K classes or targets, C bins of confidence, H rows of the horizon

_CONFIDENCE_BINS = 10
_MOST_RANKED = 20
"""Most classes whose ROC curves are computed: each is sorted by itself."""


class ClassJudging(Judging):
    """Examples with a `label`, outputs with `probabilities`. Metrics by scikit-learn, but for the calibration error, which it lacks."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)

    def judge(self, outputs: Arrays, examples: Arrays) -> Judged:
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
        rows_C, confidence_C, accuracy_C = _calibration(judged)
        # expected calibration error (Naeini et al., 2015)
        error = float((np.abs(accuracy_C - confidence_C) * rows_C).sum() / rows_C.sum())
        ranked = {"roc_auc": _roc_auc(truth_N, p_NK)} if len(self._classes) <= _MOST_RANKED else {}
        return self._by_class(truth_N, p_NK.argmax(1)) | ranked | {"calibration_error": error}

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
        bins = zip(*(column_C.tolist() for column_C in _calibration(judged)), strict=True)
        return {"calibration": [{"rows": rows, "confidence": confidence, "accuracy": accuracy} for rows, confidence, accuracy in bins]}

    def figures(self, judged: Judged) -> dict[str, Figure]:
        from . import drawing

        truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
        drawn = {
            "confusion_matrix": drawing.confusion_matrix(truth_N, p_NK.argmax(1), self._classes),
            "reliability": drawing.reliability(*_calibration(judged)),
        }
        return drawn | ({"roc_curves": drawing.roc_curves(truth_N, p_NK, self._classes)} if len(self._classes) <= _MOST_RANKED else {})

    def _by_class(self, truth_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
        """precision, recall and f1 of each class, and their means over the classes that occur; an undefined one counts as 0."""
        from sklearn.metrics import precision_recall_fscore_support

        size = len(self._classes)
        # counted once, so that a resample costs the same for any N
        cells, rows = np.unique(truth_N * size + predicted_N, return_counts=True)
        *scores, support_K = precision_recall_fscore_support(
            cells // size, cells % size, labels=np.arange(size), sample_weight=rows, average=None, zero_division=0
        )
        occurring, by_name = np.flatnonzero(support_K), dict(zip(("precision", "recall", "f1"), scores, strict=True))
        means = {name: float(score_K[occurring].mean()) for name, score_K in by_name.items()}
        return means | {f"class/{self._classes[k]}/{name}": float(score_K[k]) for k in occurring for name, score_K in by_name.items()}


def _calibration(judged: Judged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, mean confidence, accuracy) of each bin that has rows, out of ten equal ones of the predicted class's probability."""
    truth_N, p_NK = judged.columns["truth"], judged.columns["probabilities"]
    confidence_N, correct_N = p_NK.max(1).clip(0, 1), p_NK.argmax(1) == truth_N
    bin_N = np.searchsorted(np.linspace(0, 1, _CONFIDENCE_BINS + 1)[1:-1], confidence_N)
    rows_C, confidence_C, correct_C = (np.bincount(bin_N, weights) for weights in (None, confidence_N, correct_N))
    some = np.flatnonzero(rows_C)
    return rows_C[some], confidence_C[some] / rows_C[some], correct_C[some] / rows_C[some]


def _roc_auc(truth_N: np.ndarray, p_NK: np.ndarray) -> float:
    """Area under the ROC curve: of the second class of two, else the mean of each class against the rest, over the classes that occur."""
    from sklearn.metrics import roc_auc_score

    occurring = [k for k in range(p_NK.shape[1]) if 0 < (truth_N == k).sum() < len(truth_N)]
    occurring = occurring[-1:] if p_NK.shape[1] == 2 else occurring
    return float(roc_auc_score(truth_N[:, None] == np.array(occurring), p_NK[:, occurring])) if occurring else float("nan")


class ForecastJudging(ErrorJudging):
    """Errors of the first `targets` series over the rows after a window, of standardised values; the table is in their own units.

    `encoding` is their SeriesEncoding (forecasting.py).
    """

    def __init__(self, encoding: Any, targets: int, *, window: int, horizon: int) -> None:
        self._encoding, self._names, self._window, self._horizon = encoding, encoding.names[:targets], window, horizon

    @property
    def span(self) -> int:
        return self._window + self._horizon

    @property
    def row_offset(self) -> int:
        """The first row that is forecast."""
        return self._window

    def judge(self, outputs: Arrays, examples: Arrays) -> Judged:
        truth_NHK = examples["values"][:, self._window :, : len(self._names)].astype(np.float64)
        return self.compared(truth_NHK, outputs["forecast"].astype(np.float64))

    def aligned(self, judged: Judged, by: Judging) -> Judged:
        if not isinstance(by, ForecastJudging) or (by._names, by._horizon) != (self._names, self._horizon):
            theirs = f"{by._horizon} rows of {', '.join(by._names)}" if isinstance(by, ForecastJudging) else "nothing"
            raise ValueError(f"it forecasts {theirs}, not {self._horizon} rows of {', '.join(self._names)}")
        original = (by._encoding.original(judged.columns[name]) for name in ("truth", "predicted"))
        return self.compared(*(self._encoding.standardised(x_NHK) for x_NHK in original))

    def part_scores(self, judged: Judged) -> dict[str, Score]:
        error_NHK = judged.columns["predicted"] - judged.columns["truth"]
        parts = {"mse": np.square(error_NHK), "mae": np.abs(error_NHK)}
        return {
            f"horizon/{ahead + 1}/{name}": over_examples(each_NHK[:, ahead])
            for ahead in range(self._horizon)
            for name, each_NHK in parts.items()
        }

    def table(self, judged: Judged) -> dict[str, Any]:
        own = {name: self._encoding.readable(judged.columns[of]) for name, of in (("truth", "truth"), ("forecast", "predicted"))}
        each = {name: judged.scores[name].total / judged.scores[name].count for name in ("mse", "mae")}
        return {"window": np.arange(len(judged))} | own | each

    def figures(self, judged: Judged) -> dict[str, Figure]:
        from . import drawing

        squared_NHK = np.square(judged.columns["predicted"] - judged.columns["truth"])
        return {"error_by_horizon": drawing.error_by_horizon({"this model": squared_NHK.mean(2).mean(0)})}
