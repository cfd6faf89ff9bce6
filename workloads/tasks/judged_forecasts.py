"""How forecasts are judged: squared and absolute error, in all and by how far ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..judging import Judged, Judging, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# N windows, T rows of a window, H rows of the horizon, K targets


class ForecastJudging(Judging):
    """Examples are windows whose last rows are what came; errors are of standardised values, as in training.

    `restored` gives standardised values (N, H, K) in the units of the series `names`, which the table is in; `standardised` the other way.
    """

    derived: ClassVar[Mapping[str, tuple[str, Callable[[float], float]]]] = {"rmse": ("mse", math.sqrt)}

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
    def told_by(self) -> int:
        """The first row that is forecast."""
        return self._window

    def judge(self, outputs: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> Judged:
        forecast_NHK = outputs["forecast"].astype(np.float64)
        truth_NHK = examples["values"][:, self._window :, : forecast_NHK.shape[2]].astype(np.float64)
        return self._judged(truth_NHK, forecast_NHK)

    def translated(self, judged: Judged, by: Judging) -> Judged:
        if not isinstance(by, ForecastJudging) or (by._names, by._horizon) != (self._names, self._horizon):
            told = f"{by._horizon} rows of {', '.join(by._names)}" if isinstance(by, ForecastJudging) else "nothing"
            raise ValueError(f"it forecasts {told}, not {self._horizon} rows of {', '.join(self._names)}")
        truth_NHK, forecast_NHK = (self._standardised(by._restored(judged.columns[name])) for name in ("truth", "forecast"))
        return self._judged(truth_NHK, forecast_NHK)

    def _judged(self, truth_NHK: np.ndarray, forecast_NHK: np.ndarray) -> Judged:
        error_NHK = forecast_NHK - truth_NHK
        squared, absolute = (_score(each_NHK) for each_NHK in (np.square(error_NHK), np.abs(error_NHK)))
        return Judged({"truth": truth_NHK, "forecast": forecast_NHK}, {"mse": squared, "mae": absolute, "loss": squared})

    def parts(self, judged: Judged) -> dict[str, Score]:
        error_NHK = judged.columns["forecast"] - judged.columns["truth"]
        found = {}
        for ahead in range(self._horizon):
            for name, each_NHK in (("mse", np.square(error_NHK)), ("mae", np.abs(error_NHK))):
                found[f"horizon/{ahead + 1}/{name}"] = _score(each_NHK[:, ahead : ahead + 1])
        return found

    def table(self, judged: Judged) -> dict[str, Any]:
        own = {name: self._restored(judged.columns[name]) for name in ("truth", "forecast")}
        told = {name: x_NHK[:, :, 0] if x_NHK.shape[2] == 1 else x_NHK for name, x_NHK in own.items()}
        each = {name: judged.scores[name].total / judged.scores[name].count for name in ("mse", "mae")}
        return {"window": np.arange(len(judged))} | told | each

    def figures(self, judged: Judged) -> dict[str, Figure]:
        from .figures import error_by_horizon

        squared_NH = np.square(judged.columns["forecast"] - judged.columns["truth"]).mean(2)
        return {"error_by_horizon": error_by_horizon({"this model": squared_NH.mean(0)})}


def _score(each_NHK: np.ndarray) -> Score:
    flat = each_NHK.reshape(len(each_NHK), -1)
    return Score(flat.sum(1), np.full(len(flat), float(flat.shape[1])))
