"""Metrics and figures of predicted numbers: squared and absolute error; of forecasts also by steps ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..judging import Judged, Judging, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTTED_STEPS = 50
# N rows or windows, T rows of a window, H rows of the horizon, K targets


class ErrorJudging(Judging):
    """Predictions (N,) or (N, …) beside the true numbers; the loss is the mean squared error in units of `deviation`."""

    derived: ClassVar[Mapping[str, tuple[str, Callable[[float], float]]]] = {"rmse": ("mse", math.sqrt)}
    deviation = 1.0

    def compared(self, truth_N: np.ndarray, predicted_N: np.ndarray) -> Judged:
        error_N = predicted_N - truth_N
        squared, absolute = _score(np.square(error_N)), _score(np.abs(error_N))
        loss = squared if self.deviation == 1 else _score(np.square(error_N / self.deviation))
        return Judged({"truth": truth_N, "predicted": predicted_N}, {"mse": squared, "mae": absolute, "loss": loss})

    def aligned(self, judged: Judged, by: Judging) -> Judged:
        return self.compared(judged.columns["truth"], judged.columns["predicted"])

    def table(self, judged: Judged) -> dict[str, Any]:
        truth_N, predicted_N = judged.columns["truth"], judged.columns["predicted"]
        return {"truth": truth_N, "predicted": predicted_N, "error": predicted_N - truth_N}


class ForecastJudging(ErrorJudging):
    """Examples are windows whose last rows are what came; errors are of standardised values, as in training.

    `restored` gives standardised values (N, H, K) in the units of the series `names`, which the table is in; `standardised` the other way.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        restored: Callable[[np.ndarray], np.ndarray],
        standardised: Callable[[np.ndarray], np.ndarray],
        window: int,
        horizon: int,
    ) -> None:
        self._names, self._window, self._horizon = tuple(names), window, horizon
        self._restored, self._standardised = restored, standardised

    @property
    def span(self) -> int:
        return self._window + self._horizon

    @property
    def row_offset(self) -> int:
        """The first row that is forecast."""
        return self._window

    def judge(self, outputs: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> Judged:
        forecast_NHK = outputs["forecast"].astype(np.float64)
        truth_NHK = examples["values"][:, self._window :, : forecast_NHK.shape[2]].astype(np.float64)
        return self.compared(truth_NHK, forecast_NHK)

    def aligned(self, judged: Judged, by: Judging) -> Judged:
        if not isinstance(by, ForecastJudging) or (by._names, by._horizon) != (self._names, self._horizon):
            theirs = f"{by._horizon} rows of {', '.join(by._names)}" if isinstance(by, ForecastJudging) else "nothing"
            raise ValueError(f"it forecasts {theirs}, not {self._horizon} rows of {', '.join(self._names)}")
        truth_NHK, forecast_NHK = (self._standardised(by._restored(judged.columns[name])) for name in ("truth", "predicted"))
        return self.compared(truth_NHK, forecast_NHK)

    def part_scores(self, judged: Judged) -> dict[str, Score]:
        error_NHK = judged.columns["predicted"] - judged.columns["truth"]
        scores = {}
        for ahead in range(self._horizon):
            for name, each_NHK in (("mse", np.square(error_NHK)), ("mae", np.abs(error_NHK))):
                scores[f"horizon/{ahead + 1}/{name}"] = _score(each_NHK[:, ahead : ahead + 1])
        return scores

    def table(self, judged: Judged) -> dict[str, Any]:
        own = {name: self._restored(judged.columns[of]) for name, of in (("truth", "truth"), ("forecast", "predicted"))}
        columns = {name: x_NHK[:, :, 0] if x_NHK.shape[2] == 1 else x_NHK for name, x_NHK in own.items()}
        each = {name: judged.scores[name].total / judged.scores[name].count for name in ("mse", "mae")}
        return {"window": np.arange(len(judged))} | columns | each

    def figures(self, judged: Judged) -> dict[str, Figure]:
        squared_NH = np.square(judged.columns["predicted"] - judged.columns["truth"]).mean(2)
        return {"error_by_horizon": error_by_horizon({"this model": squared_NH.mean(0)})}


def _score(each_NHK: np.ndarray) -> Score:
    flat = each_NHK.reshape(len(each_NHK), -1)
    return Score(flat.sum(1), np.full(len(flat), float(flat.shape[1])))


def error_by_horizon(squared: Mapping[str, np.ndarray]) -> Figure:
    """Mean squared error of each forecast, by steps ahead."""
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
