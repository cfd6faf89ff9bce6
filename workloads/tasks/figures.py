"""Pictures that several tasks draw for the run page."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_DOTTED_STEPS, _POSITIONS, _NAME_LETTERS = 50, 25, 40


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


def worst_images(images_NCHW: np.ndarray, truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images that were classified wrongly, each with its true class and what was said instead."""
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
        said = int(p_K.argmax())
        axes.text(middle, row + 0.11, f"{classes[truth]}, said {classes[said]} ({p_K[said]:.2f})", fontsize=9, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    figure.suptitle("The surest mistakes" if len(images_NCHW) else "No mistakes")
    return figure


def worst_texts(texts: Sequence[str], truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Texts that were classified wrongly, each with its true class and what was said instead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1 + 0.6 * max(1, len(texts))), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title("The surest mistakes" if texts else "No mistakes", loc="left")
    for row, (text, truth, p_K) in enumerate(zip(texts, truth_N, p_NK, strict=True)):
        said = int(p_K.argmax())
        height = 1 - (row + 0.5) / len(texts)
        axes.text(0, height, f"{classes[truth]}, said {classes[said]} ({p_K[said]:.2f})", fontsize=9, weight="bold", va="center")
        shown = textwrap.shorten(text, 220, placeholder=" …").replace("$", r"\$")
        axes.text(0.27, height, textwrap.fill(shown, 110), fontsize=9, va="center")
    return figure


def attention_map(weights_HTT: np.ndarray, names: Sequence[str]) -> Figure:
    """Where each of H heads looks in one text: a row for each token that looks, dark where it looks."""
    from matplotlib.figure import Figure

    heads, count = len(weights_HTT), len(names)
    columns = min(4, heads)
    rows = -(-heads // columns)
    size = 1.2 + 0.14 * count
    figure = Figure(figsize=(1.2 + size * columns, 1.6 + size * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    shown = [name.replace("$", r"\$") for name in names]
    for axes in grid.ravel():
        axes.axis("off")
    for head, weights_TT in enumerate(weights_HTT):
        axes = grid[head // columns, head % columns]
        axes.axis("on")
        axes.imshow(weights_TT, cmap="Blues", vmin=0)
        axes.set_title(f"head {head + 1}, up to {weights_TT.max():.2f}", fontsize=9)
        axes.set_xticks(range(count), shown if head + columns >= heads else [], rotation=90, fontsize=7)
        axes.set_yticks(range(count), shown if head % columns == 0 else [], fontsize=7)
    figure.suptitle("Each row is a token; what it heeds is dark")
    return figure


def error_by_horizon(squared: Mapping[str, np.ndarray]) -> Figure:
    """Mean squared error of each answer, by steps ahead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, squared_H in squared.items():
        ahead = np.arange(1, len(squared_H) + 1)
        dots = "." if len(ahead) < _DOTTED_STEPS else None
        axes.plot(ahead, squared_H, marker=dots, label=f"{name.replace('_', ' ')} ({squared_H.mean():.4f})")
    axes.set(xlabel="rows ahead", ylabel="mean squared error, standardised")
    axes.set_ylim(bottom=0)
    axes.legend()
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


def loss_by_position(nll_BT: np.ndarray) -> Figure:
    """Whether more context helps: the loss at each place of the window, of places further on several together, with its standard error."""
    from matplotlib.figure import Figure

    window = nll_BT.shape[1]
    edges = np.unique(np.geomspace(1, window + 1, _POSITIONS).round().astype(int))
    groups = [nll_BT[:, first - 1 : after - 1] for first, after in itertools.pairwise(edges.tolist())]
    context, mean = (edges[:-1] + edges[1:] - 1) / 2, np.array([group.mean() for group in groups])
    error = np.array([group.std() / np.sqrt(group.size) for group in groups])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(context, mean - error, mean + error, alpha=0.25, linewidth=0, label="standard error")
    axes.plot(context, mean, marker=".", label="test loss")
    axes.axhline(nll_BT.mean(), color="grey", linestyle=":", label=f"mean {nll_BT.mean():.3f}")
    axes.set(title="Does more context help?", xlabel="tokens that the prediction looks back on", ylabel="nats a token", xscale="log")
    powers = 2 ** np.arange(window.bit_length())
    axes.set_xticks(powers, [str(power) for power in powers])
    axes.minorticks_off()
    axes.legend()
    return figure


def against_true(truth_N: np.ndarray, predicted_N: np.ndarray) -> Figure:
    """Predicted against true values; on the dotted line the two are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    ends = [float(min(truth_N.min(), predicted_N.min())), float(max(truth_N.max(), predicted_N.max()))]
    axes.plot(ends, ends, color="grey", linestyle=":", label="equal")
    axes.scatter(truth_N, predicted_N, s=12, alpha=0.6)
    axes.set(title=f"{len(truth_N):,} rows", xlabel="true", ylabel="predicted")
    axes.legend(loc="upper left")
    return figure


def residuals(truth_N: np.ndarray, predicted_N: np.ndarray) -> Figure:
    """Errors by predicted value, and how often each occurs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=[3, 1], sharey=True)
    error_N = predicted_N - truth_N
    axes.axhline(0, color="grey", linestyle=":")
    axes.scatter(predicted_N, error_N, s=12, alpha=0.6)
    axes.set(title=f"mean error {error_N.mean():+.4g}", xlabel="predicted", ylabel="predicted less true")
    beside.hist(error_N, bins="auto", orientation="horizontal")
    beside.set_xlabel("rows")
    return figure
