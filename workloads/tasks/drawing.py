"""The figures of a run's page and of an evaluation, drawn with matplotlib: of classes, of numbers, of series and of texts.

Imported only where a figure is drawn: a served model needs no matplotlib.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

# N rows, K classes or targets, C bins of confidence, B windows, H rows of the horizon, T tokens

_CLASS_NAME_CHARACTERS = 40
_TARGETS_SHOWN, _DOTTED_STEPS = 4, 50
_POSITION_GROUPS = 25
_LINE_CHARACTERS, _DARKEST, _WHITE_BELOW = 85, 1e-3, 0.03


def _figure(width: float, height: float, *grid: int, **options: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes: one, or a grid of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*grid, **options)


def _mistake(classes: Sequence[str], truth: int, p_K: np.ndarray) -> str:
    predicted = int(p_K.argmax())
    return f"{classes[truth]}, predicted {classes[predicted]} ({p_K[predicted]:.2f})"


def confusion_matrix(truth_N: np.ndarray, predicted_N: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class)."""
    shown = [name if len(name) <= _CLASS_NAME_CHARACTERS else f"{name[: _CLASS_NAME_CHARACTERS - 1]}…" for name in classes]
    labels = 0.3 + 0.1 * max(map(len, shown))
    side = max(3.8, 0.55 * len(classes))
    width, height = labels + 0.4 + side + 0.2, labels + 0.4 + side + 0.4
    figure = Figure(figsize=(width, height))
    # placed by hand, for a layout that is worked out draws everything twice
    axes = figure.add_axes(((labels + 0.4) / width, (labels + 0.4) / height, side / width, side / height))
    # counted and drawn here, for scikit-learn's display costs a second of import in every process that draws (1.9)
    counts_KK = np.bincount(truth_N * len(classes) + predicted_N, minlength=len(classes) ** 2).reshape(len(classes), -1)
    axes.imshow(counts_KK, cmap="Blues", vmin=0)
    for row, column in np.ndindex(counts_KK.shape):
        dark = counts_KK[row, column] > counts_KK.max() / 2
        axes.text(column, row, str(counts_KK[row, column]), ha="center", va="center", color="white" if dark else "#08306b")
    axes.set_xticks(range(len(classes)), shown, rotation="vertical")
    axes.set_yticks(range(len(classes)), shown)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(counts_KK)} of {counts_KK.sum()} rows right")
    return figure


def roc_curves(truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """True against false positives at every threshold: of the second class where there are two, else of each against the rest."""
    from sklearn.metrics import RocCurveDisplay

    figure, axes = _figure(6, 6)
    for k in range(1 if len(classes) == 2 else 0, len(classes)):
        if 0 < (truth_N == k).sum() < len(truth_N):  # else there is no curve
            RocCurveDisplay.from_predictions(truth_N == k, p_NK[:, k], name=classes[k], ax=axes)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(title="ROC; dotted: by chance", xlabel="false positive rate", ylabel="true positive rate")
    return figure


def reliability(rows_C: np.ndarray, confidence_C: np.ndarray, accuracy_C: np.ndarray) -> Figure:
    """Accuracy by confidence, and the number of rows behind each point."""
    figure, (axes, below) = _figure(6, 6.5, 2, 1, height_ratios=[3, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    axes.plot(confidence_C, accuracy_C, marker="o", label="this model")
    axes.set(title="Reliability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    below.bar(confidence_C, rows_C, width=0.05)
    below.set(xlabel="probability of the predicted class", ylabel="rows")
    return figure


def against_true(truth_N: np.ndarray, predicted_N: np.ndarray) -> Figure:
    """Predicted against true values; on the dotted line the two are equal."""
    figure, axes = _figure(6, 6)
    ends = [float(min(truth_N.min(), predicted_N.min())), float(max(truth_N.max(), predicted_N.max()))]
    axes.plot(ends, ends, color="grey", linestyle=":", label="equal")
    axes.scatter(truth_N, predicted_N, s=12, alpha=0.6)
    axes.set(title=f"{len(truth_N):,} rows", xlabel="true", ylabel="predicted")
    axes.legend(loc="upper left")
    return figure


def residuals(truth_N: np.ndarray, predicted_N: np.ndarray) -> Figure:
    """Errors by predicted value, and how often each occurs."""
    error_N = predicted_N - truth_N
    figure, (axes, beside) = _figure(8, 4.5, 1, 2, width_ratios=[3, 1], sharey=True)
    axes.axhline(0, color="grey", linestyle=":")
    axes.scatter(predicted_N, error_N, s=12, alpha=0.6)
    axes.set(title=f"mean error {error_N.mean():+.4g}", xlabel="predicted", ylabel="predicted less true")
    beside.hist(error_N, bins="auto", orientation="horizontal")
    beside.set_xlabel("rows")
    return figure


def forecasts(truth_BLK: np.ndarray, forecast_BHK: np.ndarray, names: Sequence[str], *, first_rows: np.ndarray) -> Figure:
    """Windows side by side, a line of axes for each target: the input rows, the true rows after them, and the forecast."""
    (windows_shown, length, targets), horizon = truth_BLK.shape, forecast_BHK.shape[1]
    targets = min(targets, _TARGETS_SHOWN)
    size = (4.6 * windows_shown, 0.6 + 2.8 * targets)
    figure, grid = _figure(*size, targets, windows_shown, squeeze=False, sharex=True, sharey="row")
    ahead = np.arange(length) - (length - horizon) + 1  # 1 is the first row that is forecast
    dots = "." if horizon < _DOTTED_STEPS else None
    for (row, column), axes in np.ndenumerate(grid):
        axes.axvspan(0.5, horizon + 0.5, color="0.94")
        axes.plot(ahead, truth_BLK[column, :, row], color="0.35", label="series")
        axes.plot(ahead[-horizon:], forecast_BHK[column, :, row], color="tab:orange", marker=dots, label="forecast")
        axes.set(title=f"from test row {first_rows[column]:,}" if row == 0 else "", ylabel=names[row] if column == 0 else "")
    for axes in grid[-1]:
        axes.set_xlabel("rows ahead")
    grid[0, 0].legend(loc="upper left")
    return figure


def error_by_horizon(squared: Mapping[str, np.ndarray]) -> Figure:
    """Mean squared error of each forecast, by steps ahead."""
    figure, axes = _figure(7, 4.5)
    for name, squared_H in squared.items():
        ahead = np.arange(1, len(squared_H) + 1)
        dots = "." if len(ahead) < _DOTTED_STEPS else None
        axes.plot(ahead, squared_H, marker=dots, label=f"{name.replace('_', ' ')} ({squared_H.mean():.4f})")
    axes.set(xlabel="rows ahead", ylabel="mean squared error, standardised")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def loss_by_position(nll_BT: np.ndarray) -> Figure:
    """Loss by position in the window, which shows if more context helps: with its standard error, later positions averaged in groups."""
    window = nll_BT.shape[1]
    edges = np.unique(np.geomspace(1, window + 1, _POSITION_GROUPS).round().astype(int))
    groups = [nll_BT[:, first - 1 : after - 1] for first, after in itertools.pairwise(edges.tolist())]
    context, mean = (edges[:-1] + edges[1:] - 1) / 2, np.array([group.mean() for group in groups])
    error = np.array([group.std() / np.sqrt(group.size) for group in groups])
    figure, axes = _figure(8, 4.5)
    axes.fill_between(context, mean - error, mean + error, alpha=0.25, linewidth=0, label="standard error")
    axes.plot(context, mean, marker=".", label="test loss")
    axes.axhline(nll_BT.mean(), color="grey", linestyle=":", label=f"mean {nll_BT.mean():.3f}")
    axes.set(title="Does more context help?", xlabel="tokens that the prediction looks back on", ylabel="nats a token", xscale="log")
    powers = 2 ** np.arange(window.bit_length())
    axes.set_xticks(powers, [str(power) for power in powers])
    axes.minorticks_off()
    axes.legend()
    return figure


def passage(pieces: Sequence[str], p_N: np.ndarray) -> Figure:
    """A text, each character coloured by the predicted probability of its token."""
    cells, row, column = [], 0, 0
    for piece, p in zip(pieces, p_N.tolist(), strict=True):
        for character in piece:
            shown = "↵" if character == "\n" else character if character.isprintable() else "·"
            cells.append((row, column, shown, p))
            row, column = (row + 1, 0) if character == "\n" or column + 1 == _LINE_CHARACTERS else (row, column + 1)
    p_RC = np.full((cells[-1][0] + 1, 1 + max(column for _, column, _, _ in cells)), np.nan)
    for row, column, _, p in cells:
        p_RC[row, column] = p
    figure, axes = _figure(2 + 0.12 * p_RC.shape[1], 1.2 + 0.25 * p_RC.shape[0])
    picture = axes.imshow(p_RC, cmap="Oranges_r", norm=LogNorm(_DARKEST, 1, clip=True), aspect="auto")
    for row, column, character, p in cells:
        colour = "white" if p < _WHITE_BELOW else "black"
        axes.text(column, row, character, family="monospace", fontsize=9, color=colour, ha="center", va="center", parse_math=False)
    axes.axis("off")
    axes.set_title("The first test tokens, coloured by the predicted probability of each", loc="left")
    figure.colorbar(picture, ax=axes, fraction=0.02, pad=0.01, format="{x:g}")
    return figure


def worst_images(images_NCHW: np.ndarray, truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Misclassified images, each with its true class and the predicted one."""
    columns = 4
    rows = max(1, -(-len(images_NCHW) // columns))
    figure = Figure(figsize=(2.2 * columns, 0.4 + 2.4 * rows))
    # all on one pair of axes: with a pair for each, these took most of the time that a run's pictures take
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / (0.4 + 2.4 * rows)))
    axes.axis("off")
    for place, (image_CHW, truth, p_K) in enumerate(zip(images_NCHW, truth_N, p_NK, strict=True)):
        row, column = divmod(place, columns)
        _, height, width = image_CHW.shape
        tall, wide = 0.84 * height / max(height, width), 0.9 * width / max(height, width)
        image = image_CHW.transpose(1, 2, 0) if len(image_CHW) == 3 else image_CHW[0]
        middle, foot = column + 0.5, row + 0.56 + tall / 2
        axes.imshow(image, cmap="gray", extent=(middle - wide / 2, middle + wide / 2, foot, foot - tall), aspect="auto")
        axes.text(middle, row + 0.11, _mistake(classes, truth, p_K), fontsize=9, ha="center", va="bottom")
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    figure.suptitle("The surest mistakes" if len(images_NCHW) else "No mistakes")
    return figure


def worst_texts(texts: Sequence[str], truth_N: np.ndarray, p_NK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Misclassified texts, each with its true class and the predicted one."""
    figure, axes = _figure(11, 1 + 0.6 * max(1, len(texts)))
    axes.axis("off")
    axes.set_title("The surest mistakes" if texts else "No mistakes", loc="left")
    for row, (text, truth, p_K) in enumerate(zip(texts, truth_N, p_NK, strict=True)):
        height = 1 - (row + 0.5) / len(texts)
        axes.text(0, height, _mistake(classes, truth, p_K), fontsize=9, weight="bold", va="center")
        shown = textwrap.shorten(text, 220, placeholder=" …").replace("$", r"\$")
        axes.text(0.27, height, textwrap.fill(shown, 110), fontsize=9, va="center")
    return figure


def attention_map(weights_HTT: np.ndarray, names: Sequence[str]) -> Figure:
    """Attention weights of H heads over one text: a row for each query token, dark where its weight is high."""
    heads, count = len(weights_HTT), len(names)
    columns = min(4, heads)
    rows = -(-heads // columns)
    size = 1.2 + 0.14 * count
    figure, grid = _figure(1.2 + size * columns, 1.6 + size * rows, rows, columns, squeeze=False)
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
    figure.suptitle("Attention: a row for each token, dark where it attends")
    return figure
