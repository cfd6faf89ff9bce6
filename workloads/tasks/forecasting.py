"""Forecasts of one or many series: a window of rows in, the rows after it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ..base import Arrays, DataError, Encoding, Headline, Mean, Names, Rows, Serving, Workload, choose_columns
from .tables import LARGEST, NUMBERS, Moments, is_number, numbers
from .windows import Windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from ..judging import Judging

# N rows or windows, B windows of a batch, T rows of a window, H rows of the horizon, S series, the first K of them targets

Forecast = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Forecasts (B, H, K) of the test windows whose numbers (B,) and targets (B, T, K) are given."""

_CHUNK_VALUES = 1 << 22
_WINDOWS_SHOWN = 3
_HINT = "; a series needs a finite number in every row"


class SeriesEncoding(Encoding):
    """The series' names, targets first, and the mean and deviation of each one's training rows."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def standardised(self, x_NK: np.ndarray) -> np.ndarray:
        """float64 (…, K): the first K series with mean 0 and deviation 1 in the training rows."""
        series = x_NK.shape[-1]
        return (x_NK - np.array(self.mean[:series])) / np.array(self.deviation[:series])

    def original(self, z_NK: np.ndarray) -> np.ndarray:
        """float64 (…, K): standardised values of the first K series in their own units."""
        series = z_NK.shape[-1]
        return z_NK.astype(np.float64) * np.array(self.deviation[:series]) + np.array(self.mean[:series])

    def readable(self, z_NTK: np.ndarray) -> np.ndarray:
        """float64 (N, T, K), or (N, T) of a single series: standardised values in their own units."""
        return _squeezed(self.original(z_NTK))


class ForecastServing(Serving):
    """Windows of raw values in, forecasts in the series' own units out."""

    def example(self, raw: Arrays) -> np.ndarray:
        """Windows of raw values (N, T, S), or (N, T) of a single series."""
        return np.ascontiguousarray(_squeezed(self.windows({"values": _matrix(raw, self.encoding.names)})["values"]))

    @property
    def lookback(self) -> int:
        return self.workload.window - 1

    def windows(self, encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values_NS, window = encoded["values"], self.workload.window
        if len(values_NS) < window:
            return {"values": np.empty((0, window, values_NS.shape[1]), values_NS.dtype)}
        return {"values": np.lib.stride_tricks.sliding_window_view(values_NS, window, axis=0).transpose(0, 2, 1)}

    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        encoding, window = self.encoding, self.workload.window
        wanted = f"windows must be numbers (rows, {window}, {len(encoding.names)}), the series being {', '.join(encoding.names)}"
        try:
            x_NTS = np.asarray(given)
            if x_NTS.dtype.kind not in NUMBERS + "O":  # numpy would make numbers of text and of dates
                raise TypeError
            x_NTS = x_NTS.astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            raise DataError(wanted) from None
        if x_NTS.ndim == 2 and len(encoding.names) == 1:
            x_NTS = x_NTS[:, :, None]
        if x_NTS.shape[1:] != (window, len(encoding.names)):
            raise DataError(f"{wanted}; these are {x_NTS.shape}")
        return {"values": _standardised(x_NTS, encoding)}

    def decode(self, outputs: Arrays) -> dict[str, list]:
        """`forecast` in the series' own units: the steps ahead (H,) of a single target, or (H, K)."""
        return {"forecast": self.encoding.readable(outputs["forecast"]).tolist()}


class Forecasting(Workload):
    """Raw rows: one after another in time, evenly; a column of numbers (N,) for each series.

    Stored is `values` float32 (N, S), the targets first, standardised by the training rows. That is done when a row is encoded, and not
    by the network as with an image's bytes: loss and metrics are of standardised values too, as published ones are, and of numbers like
    1,013,250.3 single precision leaves little, so the mean is subtracted in double precision. A registered model is given windows of raw
    values and answers in the targets' own units; both hold the series in the order of the encoding's names.
    """

    task: ClassVar[str] = "forecasting"
    columns: ClassVar[tuple[str, ...]] = ()
    ordered: ClassVar[bool] = True
    skippable: ClassVar[bool] = False
    sample_rows: ClassVar[int] = 7
    headline: ClassVar[Headline] = Headline("mse", "min")
    better: ClassVar[Mapping[str, Literal["max", "min"]]] = {"mse": "min", "mae": "min", "rmse": "min", "loss": "min"}
    encoding_type: ClassVar[type[Encoding]] = SeriesEncoding
    serving_type: ClassVar[type[Serving]] = ForecastServing

    window: int = Field(100, gt=0)
    """Input length, in rows."""
    horizon: int = Field(1, gt=0)
    """Forecast length, in rows."""
    series: Names = ()
    """Columns to read as series; empty: every numeric column but `time`."""
    targets: Names = ()
    """Series to forecast, out of those read; empty: all of them."""
    time: str | None = None
    """Column with each row's time. It is no series; its numbers or dates must not decrease from row to row."""
    season: int = Field(24, gt=0)
    """Length of a season, in rows, at most the window; one naive baseline repeats the last season."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Forecasting:
        if self.season > self.window:
            raise ValueError(f"model.season={self.season} is longer than model.window={self.window}, so no window holds a season")
        if self.series and (strange := [name for name in self.targets if name not in self.series]):
            raise ValueError(f"model.targets: {strange[0]!r} is not in model.series ({', '.join(self.series)})")
        for setting in ("series", "targets"):
            if self.time in getattr(self, setting):
                raise ValueError(f"model.{setting}: {self.time!r} is model.time, so no series")
        return self

    # ---- from raw rows to windows

    def read_columns(self, available: Sequence[str], encoding: SeriesEncoding | None = None, *, target: bool = True) -> tuple[str, ...]:
        if encoding:
            return choose_columns((*encoding.names, *([self.time] if self.time and self.time in available else [])), available)
        stated = choose_columns((*(self.series or self.targets), *([self.time] if self.time else [])), available)
        return stated if self.series else tuple(available)

    def fit(self, batches: Iterable[Arrays]) -> SeriesEncoding:
        names: tuple[str, ...] = ()
        moments = Moments.none()
        latest = None
        for raw in batches:
            names = names or self._names(raw)
            latest = self._check_time(raw, latest)
            moments = moments.with_rows(_matrix(raw, names))
        deviation_S = np.sqrt(moments.square_F / moments.count_F)
        deviation_S[deviation_S == 0] = 1  # a series that never changes keeps its unit
        return SeriesEncoding(names=names, mean=tuple(moments.mean_F.tolist()), deviation=tuple(deviation_S.tolist()))

    def encode(self, raw: Arrays, encoding: SeriesEncoding) -> dict[str, np.ndarray]:
        self._check_time(raw, None)
        return {"values": _standardised(_matrix(raw, encoding.names), encoding)}

    @property
    def context(self) -> int:
        return self.window

    def examples(self, stored: Rows, *, training: bool) -> Rows:
        rows, needed = len(stored), self.window + self.horizon
        if rows < needed:
            included = "" if training else f" ({self.window:,} before the split, to look back on, included)"
            raise DataError(
                f"{rows:,} rows{included} are fewer than a window of {self.window:,} and a horizon of {self.horizon:,} need: {needed:,}"
            )
        return Windows(stored, length=needed)

    def _names(self, raw: Arrays) -> tuple[str, ...]:
        """The series, targets first. A column of which any value is a number is one; `_matrix` will refuse it if another is not."""
        numeric = (name for name, column in raw.items() if column.dtype.kind in NUMBERS or any(map(is_number, column)))
        series = self.series or tuple(name for name in numeric if name != self.time)
        if strange := [name for name in self.targets if name not in series]:
            raise DataError(f"column {strange[0]}: holds no numbers, so it cannot be forecast; columns of numbers: {', '.join(series)}")
        if not series:
            raise DataError(f"no column holds numbers, so there is no series; columns: {', '.join(raw)}")
        return (*self.targets, *(name for name in series if name not in self.targets))

    def _check_time(self, raw: Arrays, latest: Any) -> Any:
        """The time of the last row, where times can be compared. Raises DataError if one is before that of the row above, or `latest`."""
        when_N = raw.get(self.time or "")
        if when_N is None or when_N.dtype.kind not in "iufM":
            return latest
        above_N = np.concatenate([when_N[:1] if latest is None else [latest], when_N[:-1]])
        if (when_N < above_N).any():
            row = int(np.argmax(when_N < above_N))
            raise DataError(f"column {self.time}: {when_N[row]} follows {above_N[row]}; rows must be in the order of time", row)
        return when_N[-1]

    # ---- scores and figures

    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        x_BTS, y_BHS = batch["values"].split([self.window, self.horizon], dim=1)
        forecast_BHK = model(x_BTS).float()
        error_BHK = forecast_BHK - y_BHS[:, :, : forecast_BHK.shape[2]]
        squared, count = error_BHK.square().sum(), error_BHK.numel()
        return {"loss": Mean(squared, count), "mse": Mean(squared, count), "mae": Mean(error_BHK.abs().sum(), count)}

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"forecast": model(batch["values"][:, : self.window]).float()}

    def baselines(self, train: Rows, test: Rows, encoding: SeriesEncoding) -> dict[str, dict[str, float]]:
        return {
            name: {"mse": float(np.mean(squared_H)), "mae": float(np.mean(absolute_H))}
            for name, (squared_H, absolute_H) in self._errors(test, self._naive(), encoding).items()
        }

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: SeriesEncoding) -> dict[str, Figure]:
        from . import drawing

        forecast_NHK = outputs["forecast"]
        own: dict[str, Forecast] = {"this model": lambda index_B, x_BTK: forecast_NHK[index_B]}
        errors = self._errors(test, own | self._naive(), encoding)
        shown = np.unique(np.linspace(0, len(test) - 1, _WINDOWS_SHOWN).round().astype(int))
        truth_BLK, forecast_BHK = self._targets_of(test, shown, encoding), forecast_NHK[shown]
        return {
            "forecast": drawing.forecasts(encoding.original(truth_BLK), encoding.original(forecast_BHK), encoding.names, first_rows=shown),
            "error_by_horizon": drawing.error_by_horizon({name: squared_H for name, (squared_H, _) in errors.items()}),
        }

    def judging(self, encoding: SeriesEncoding) -> Judging:
        from .judged import ForecastJudging

        return ForecastJudging(encoding, len(self.targets or encoding.names), window=self.window, horizon=self.horizon)

    def _naive(self) -> dict[str, Forecast]:
        """Naive baselines: forecasts from the window alone."""
        of_season_H = self.window - self.season + np.arange(self.horizon) % self.season
        return {
            "last_value": lambda index_B, x_BTK: x_BTK[:, -1:].repeat(self.horizon, axis=1),
            "seasonal_naive": lambda index_B, x_BTK: x_BTK[:, of_season_H],
        }

    def _targets_of(self, test: Rows, index: np.ndarray, encoding: SeriesEncoding) -> np.ndarray:
        return test.take(index, ["values"])["values"][:, :, : len(self.targets or encoding.names)]

    def _errors(self, test: Rows, forecasts: Mapping[str, Forecast], encoding: SeriesEncoding) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean squared and mean absolute error (H,) of each forecast over all test windows, by steps ahead."""
        totals = {name: (np.zeros(self.horizon), np.zeros(self.horizon)) for name in forecasts}
        chunk = max(1, _CHUNK_VALUES // ((self.window + self.horizon) * len(encoding.names)))
        for start in range(0, len(test), chunk):
            index_B = np.arange(start, min(start + chunk, len(test)))
            x_BTK, y_BHK = np.split(self._targets_of(test, index_B, encoding), [self.window], axis=1)
            for name, forecast in forecasts.items():
                error_BHK = forecast(index_B, x_BTK).astype(np.float64) - y_BHK
                for total_H, each in zip(totals[name], (np.square(error_BHK), np.abs(error_BHK)), strict=True):
                    total_H += each.mean(axis=2).sum(axis=0)
        return {name: (squared_H / len(test), absolute_H / len(test)) for name, (squared_H, absolute_H) in totals.items()}


def _matrix(raw: Arrays, names: Sequence[str]) -> np.ndarray:
    """float64 (N, S): the columns `names`. Raises DataError for what is missing, infinite or no number."""
    return np.column_stack([numbers(name, raw[name], complete=True, hint=_HINT) for name in names])


def _standardised(x_NS: np.ndarray, encoding: SeriesEncoding) -> np.ndarray:
    """float32 (…, S), standardised. Raises DataError where single precision cannot hold a value."""
    z_NS = encoding.standardised(x_NS)
    if (bad := ~(np.abs(z_NS) <= LARGEST)).any():
        place = tuple(int(each) for each in np.argwhere(bad)[0])
        where = f", row {place[1]} of the window" if len(place) == 3 else ""
        problem = "is missing" if np.isnan(x_NS[place]) else f"{x_NS[place]:g} is too large"
        raise DataError(f"column {encoding.names[place[-1]]}{where}: {problem}{_HINT}", place[0])
    return z_NS.astype(np.float32)


def _squeezed(x_NTK: np.ndarray) -> np.ndarray:
    """(N, T) of a single series, else as it is."""
    return x_NTK[:, :, 0] if x_NTK.shape[2] == 1 else x_NTK
