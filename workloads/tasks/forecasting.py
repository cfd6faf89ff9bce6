"""Forecasts of one or many series: a window of rows in, the rows after it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from ..base import Arrays, DataError, Encoding, Headline, Mean, Rows, Serving, Workload, choose_columns
from .tables import Moments
from .windows import Windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from ..judging import Judging

# N rows or windows, B windows of a batch, T rows of a window, H rows of the horizon, S series, the first K of them targets

Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Forecasts (B, H, K) of the test windows whose numbers (B,) and targets (B, T, K) are given."""

_CHUNK_VALUES = 1 << 22
_NUMBERS = "biuf"  # numpy's letters for kinds of numbers
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _no_column_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"a column is stated twice: {', '.join(names)}")
    return names


Columns = Annotated[tuple[str, ...], AfterValidator(_no_column_twice)]


class SeriesEncoding(Encoding):
    """The series' names, targets first, and the mean and deviation of each one's training rows."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class ForecastServing(Serving):
    """Windows of raw values in, forecasts in the series' own units out."""

    def example(self, raw: Arrays) -> np.ndarray:
        """Windows of raw values (N, T, S), or (N, T) of a single series."""
        x_NST = np.lib.stride_tricks.sliding_window_view(_numbers(raw, self.encoding.names), self.workload.window, axis=0)
        return np.ascontiguousarray(x_NST[:, 0] if x_NST.shape[1] == 1 else x_NST.transpose(0, 2, 1))

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
            array = np.asarray(given)
            x_NTS = array.astype(np.float64) if array.dtype.kind in _NUMBERS + "O" else None
        except (TypeError, ValueError, OverflowError):
            x_NTS = None
        if x_NTS is None:
            raise DataError(wanted)
        if x_NTS.ndim == 2 and len(encoding.names) == 1:
            x_NTS = x_NTS[:, :, None]
        if x_NTS.shape[1:] != (window, len(encoding.names)):
            raise DataError(f"{wanted}; these are {x_NTS.shape}")
        return {"values": _standardised(x_NTS, encoding)}

    def decode(self, outputs: Arrays) -> dict[str, list]:
        """`forecast` in the series' own units: the steps ahead (H,) of a single target, or (H, K)."""
        forecast_BHK = _original(outputs["forecast"], self.encoding)
        return {"forecast": (forecast_BHK[:, :, 0] if forecast_BHK.shape[2] == 1 else forecast_BHK).tolist()}


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
    """Rows looked back on."""
    horizon: int = Field(1, gt=0)
    """Rows forecast ahead."""
    series: Columns = ()
    """Columns read, each a series; empty: every column of numbers but `time`."""
    targets: Columns = ()
    """Columns forecast, out of those read; empty: all of them."""
    time: str | None = None
    """Column that says when a row was: no series, but where it holds numbers or dates they must not fall from row to row."""
    season: int = Field(24, gt=0)
    """Rows of a season, at most a window's; one naive baseline repeats the last season."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Forecasting:
        if self.season > self.window:
            raise ValueError(f"model.season={self.season} is longer than model.window={self.window}, so no window holds a season")
        if self.series and (strange := [name for name in self.targets if name not in self.series]):
            raise ValueError(f"model.targets: {strange[0]!r} is not in model.series ({', '.join(self.series)})")
        if self.time in self.series:
            raise ValueError(f"model.series: {self.time!r} is model.time, so no series")
        if self.time in self.targets:
            raise ValueError(f"model.targets: {self.time!r} is model.time, so no series")
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
            moments = moments.with_rows(_numbers(raw, names))
        if not names:
            raise DataError("there are no training rows")
        deviation_S = np.sqrt(moments.square_F / moments.count_F)
        deviation_S[deviation_S == 0] = 1  # a series that never changes keeps its unit
        return SeriesEncoding(names=names, mean=tuple(moments.mean_F.tolist()), deviation=tuple(deviation_S.tolist()))

    def encode(self, raw: Arrays, encoding: SeriesEncoding) -> dict[str, np.ndarray]:
        self._check_time(raw, None)
        return {"values": _standardised(_numbers(raw, encoding.names), encoding)}

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
        """The series, targets first. A column of which any value is a number is one; `_numbers` will refuse it if another is not."""
        found = self.series or tuple(name for name, column in raw.items() if name != self.time and _holds_numbers(column))
        if strange := [name for name in self.targets if name not in found]:
            raise DataError(f"column {strange[0]}: holds no numbers, so it cannot be forecast; columns of numbers: {', '.join(found)}")
        if not found:
            raise DataError(f"no column holds numbers, so there is no series; columns: {', '.join(raw)}")
        return (*self.targets, *(name for name in found if name not in self.targets))

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
        from .judged_numbers import error_by_horizon

        forecast_NHK = outputs["forecast"]
        answers: dict[str, Answer] = {"this model": lambda index_B, x_BTK: forecast_NHK[index_B]}
        errors = self._errors(test, answers | self._naive(), encoding)
        shown = np.unique(np.linspace(0, len(test) - 1, _SHOWN_WINDOWS).round().astype(int))
        truth_BLK = self._targets_of(test, shown, encoding)
        return {
            "forecast": _forecasts(
                _original(truth_BLK, encoding), _original(forecast_NHK[shown], encoding), encoding.names, first_rows=shown
            ),
            "error_by_horizon": error_by_horizon({name: squared_H for name, (squared_H, _) in errors.items()}),
        }

    def judging(self, encoding: SeriesEncoding) -> Judging:
        from .judged_numbers import ForecastJudging

        targets = len(self.targets or encoding.names)
        mean_K, deviation_K = (np.array(each[:targets]) for each in (encoding.mean, encoding.deviation))
        return ForecastJudging(
            names=encoding.names[:targets],
            restored=lambda z_BHK: _original(z_BHK, encoding),
            standardised=lambda x_BHK: (x_BHK - mean_K) / deviation_K,
            window=self.window,
            horizon=self.horizon,
        )

    def _naive(self) -> dict[str, Answer]:
        """Naive baselines: forecasts from the window alone."""
        of_season_H = self.window - self.season + np.arange(self.horizon) % self.season
        return {
            "last_value": lambda index_B, x_BTK: x_BTK[:, -1:].repeat(self.horizon, axis=1),
            "seasonal_naive": lambda index_B, x_BTK: x_BTK[:, of_season_H],
        }

    def _targets_of(self, test: Rows, index: np.ndarray, encoding: SeriesEncoding) -> np.ndarray:
        return test.take(index, ["values"])["values"][:, :, : len(self.targets or encoding.names)]

    def _errors(self, test: Rows, answers: Mapping[str, Answer], encoding: SeriesEncoding) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean squared and mean absolute error (H,) of each answer over all test windows, by steps ahead."""
        totals = {name: (np.zeros(self.horizon), np.zeros(self.horizon)) for name in answers}
        chunk = max(1, _CHUNK_VALUES // ((self.window + self.horizon) * len(encoding.names)))
        for start in range(0, len(test), chunk):
            index_B = np.arange(start, min(start + chunk, len(test)))
            x_BTK, y_BHK = np.split(self._targets_of(test, index_B, encoding), [self.window], axis=1)
            for name, answer in answers.items():
                error_BHK = answer(index_B, x_BTK).astype(np.float64) - y_BHK
                for total_H, each in zip(totals[name], (np.square(error_BHK), np.abs(error_BHK)), strict=True):
                    total_H += each.mean(axis=2).sum(axis=0)
        return {name: (squared_H / len(test), absolute_H / len(test)) for name, (squared_H, absolute_H) in totals.items()}


def _numbers(raw: Arrays, names: Sequence[str]) -> np.ndarray:
    """float64 (N, S): the columns `names`. Raises DataError for what is missing, infinite or no number."""
    x_NS = np.empty((len(raw[names[0]]), len(names)))
    for column, name in enumerate(names):
        if raw[name].ndim != 1:
            raise DataError(f"column {name}: a value of it is an array of {raw[name].shape[1:]}, not a number")
        if raw[name].dtype.kind in _NUMBERS:
            x_NS[:, column] = raw[name]
        else:
            for row, value in enumerate(raw[name]):
                if value is not None and not _is_number(value):
                    raise DataError(f"column {name}: {str(value)!r} is not a number", row)
                x_NS[row, column] = np.nan if value is None else float(value)
    _check_finite(x_NS, x_NS, names)
    return x_NS


def _standardised(x_NS: np.ndarray, encoding: SeriesEncoding) -> np.ndarray:
    """float32 (…, S), each series of mean 0 and deviation 1 in the training rows. Raises DataError where a value is not finite."""
    z_NS = (x_NS - np.array(encoding.mean)) / np.array(encoding.deviation)
    _check_finite(z_NS, x_NS, encoding.names)
    return z_NS.astype(np.float32)


def _original(z_BHK: np.ndarray, encoding: SeriesEncoding) -> np.ndarray:
    """float64 (…, K): standardised values of the first K series in their own units."""
    targets = z_BHK.shape[-1]
    return z_BHK.astype(np.float64) * np.array(encoding.deviation[:targets]) + np.array(encoding.mean[:targets])


def _check_finite(x_NS: np.ndarray, raw_NS: np.ndarray, names: Sequence[str]) -> None:
    """Raises DataError for the first value of `x_NS` (…, S) that single precision cannot hold, and says what it is in `raw_NS`."""
    bad = ~(np.abs(x_NS) <= _FLOAT32_MAX)
    if bad.any():
        place = tuple(int(each) for each in np.argwhere(bad)[0])
        where = f", row {place[1]} of the window" if len(place) == 3 else ""
        problem = "is missing" if np.isnan(raw_NS[place]) else f"{raw_NS[place]:g} is too large a number"
        raise DataError(f"column {names[place[-1]]}{where}: {problem}; a series needs a finite number in every row", place[0])


def _holds_numbers(column: np.ndarray) -> bool:
    return column.dtype.kind in _NUMBERS or (column.dtype.kind in "OUS" and any(_is_number(value) for value in column))


def _is_number(value: Any) -> bool:
    """True where `value`, of a column of Python objects or of strings, is or spells a finite number."""
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError, OverflowError):
        return False


# ---- pictures

_SHOWN_WINDOWS, _SHOWN_TARGETS, _DOTTED = 3, 4, 50


def _forecasts(truth_BLK: np.ndarray, forecast_BHK: np.ndarray, names: Sequence[str], *, first_rows: np.ndarray) -> Figure:
    """Windows side by side, a target a line: what was looked back on, what came, what was forecast."""
    from matplotlib.figure import Figure

    (windows_shown, length, targets), horizon = truth_BLK.shape, forecast_BHK.shape[1]
    targets = min(targets, _SHOWN_TARGETS)
    figure = Figure(figsize=(4.6 * windows_shown, 0.6 + 2.8 * targets), layout="constrained")
    grid = figure.subplots(targets, windows_shown, squeeze=False, sharex=True, sharey="row")
    ahead = np.arange(length) - (length - horizon) + 1  # 1 is the first row that is forecast
    dots = "." if horizon < _DOTTED else None
    for (row, column), axes in np.ndenumerate(grid):
        axes.axvspan(0.5, horizon + 0.5, color="0.94")
        axes.plot(ahead, truth_BLK[column, :, row], color="0.35", label="series")
        axes.plot(ahead[-horizon:], forecast_BHK[column, :, row], color="tab:orange", marker=dots, label="forecast")
        axes.set(title=f"from test row {first_rows[column]:,}" if row == 0 else "", ylabel=names[row] if column == 0 else "")
    for axes in grid[-1]:
        axes.set_xlabel("rows ahead")
    grid[0, 0].legend(loc="upper left")
    return figure
