"""Pictures that several tasks draw for the run page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class)."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay
    from sklearn.metrics import confusion_matrix as count

    size = max(5.0, 0.55 * len(classes))
    figure = Figure(figsize=(size, size), layout="constrained")
    counts = count(truth, predicted, labels=np.arange(len(classes)))
    display = ConfusionMatrixDisplay(counts, display_labels=classes)
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, values_format="d", xticks_rotation="vertical")
    display.ax_.set_title(f"{np.trace(counts)} of {counts.sum()} rows right")
    return figure
