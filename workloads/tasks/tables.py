"""Tables of numbers: columns to one matrix of features, means and deviations, and the tables that a registered model is given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from ..base import Arrays, DataError, Encoding, Serving, Workload, choose_columns

if TYPE_CHECKING:
    import pandas as pd

# N rows, F features

_LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 1e-12


class FeatureEncoding(Encoding):
    """Names of the features in order, and their means and deviations over the training rows."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class Tabular(Workload):
    """Rows of a table: the target, and features (N,), numbers. A missing number (NaN, None) of a feature counts as the training mean."""

    features: tuple[str, ...] = ()
    """Columns that the prediction is made from, in order; empty: every column but the target."""

    @model_validator(mode="after")
    def _features_are_columns_of_their_own(self) -> Self:
        if len(set(self.features)) < len(self.features) or self.target_column in self.features:
            raise ValueError(f"model.features: a feature is stated once, and is not the {self.target_column}: {', '.join(self.features)}")
        return self

    def read_columns(self, available: Sequence[str], encoding: FeatureEncoding | None = None, *, target: bool = True) -> tuple[str, ...]:
        if encoding:
            features = encoding.features
        elif not (features := self.features or tuple(name for name in available if name != self.target_column)):
            raise DataError(f"there is no column but {self.target_column}; a prediction needs features")
        return choose_columns((*(self.columns if target else ()), *features), available)

    def feature_names(self, raw: Arrays) -> list[str]:
        """The features among columns that were read to learn an encoding."""
        return [name for name in raw if name != self.target_column]

    def learn_features(self, batches: Iterable[Arrays]) -> FeatureEncoding:
        """The encoding of the features of raw training rows. Raises DataError."""
        features: tuple[str, ...] = ()
        moments = Moments.none()
        for raw in batches:
            features = tuple(self.feature_names(raw))
            moments = moments.with_rows(matrix(raw, features))
        if not features:
            raise DataError("there are no training rows")
        if empty := [name for name, count in zip(features, moments.count_F, strict=True) if not count]:
            raise DataError(f"column {empty[0]}: is missing in every training row")
        return FeatureEncoding(features=features, mean=tuple(moments.mean_F.tolist()), deviation=tuple(moments.deviation_F().tolist()))

    def encode_features(self, raw: Arrays, encoding: FeatureEncoding) -> np.ndarray:
        """float64 (N, F), the training mean where a number is missing. Raises DataError."""
        x_NF = matrix(raw, encoding.features)
        return np.where(np.isnan(x_NF), np.array(encoding.mean), x_NF)


class TableServing(Serving):
    """Tables of numbers in; a subclass says what comes out."""

    def example(self, raw: Arrays) -> pd.DataFrame:
        import pandas as pd

        # all as floats: whoever calls the registered model may then leave out any number
        return pd.DataFrame({name: numbers(name, raw[name]) for name in self.workload.feature_names(raw)})

    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        """A table: a DataFrame, or what makes one (a list of dicts, a dict of lists). Columns that are no features are ignored."""
        import pandas as pd

        try:
            table = pd.DataFrame(given).rename(columns=str)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"a table was expected (a DataFrame, a list of dicts, a dict of lists), not {type(given).__name__}: {error}"
            ) from None
        features = self.encoding.features
        _check_columns(features, list(table.columns))
        return self.encode({name: _column(table[name]) for name in features})


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each feature's numbers.

    Batches are merged by these (Chan, Golub & LeVeque, 1979): sums of squares would cancel where the mean is large.
    """

    count_F: np.ndarray
    mean_F: np.ndarray
    square_F: np.ndarray

    @classmethod
    def none(cls) -> Moments:
        return cls(np.zeros(1), np.zeros(1), np.zeros(1))

    def with_rows(self, x_NF: np.ndarray) -> Moments:
        known_NF = ~np.isnan(x_NF)
        count_F = self.count_F + known_NF.sum(0)
        share_F = known_NF.sum(0) / np.maximum(count_F, 1)
        mean_F = np.where(known_NF, x_NF, 0).sum(0) / np.maximum(known_NF.sum(0), 1)
        square_F = (np.where(known_NF, x_NF - mean_F, 0) ** 2).sum(0)
        apart_F = mean_F - self.mean_F
        return Moments(count_F, self.mean_F + apart_F * share_F, self.square_F + square_F + apart_F**2 * self.count_F * share_F)

    def deviation_F(self) -> np.ndarray:
        """Zero for a constant feature, which would otherwise seem to vary by rounding."""
        deviation_F = np.sqrt(self.square_F / self.count_F)
        return np.where(deviation_F > np.maximum(_ROUNDING * np.abs(self.mean_F), np.finfo(np.float64).tiny), deviation_F, 0.0)


def matrix(raw: Arrays, features: Sequence[str]) -> np.ndarray:
    """float64 (N, F), NaN where a number is missing. Raises DataError naming column and row."""
    return np.column_stack([numbers(name, raw[name]) for name in features])


def numbers(name: str, column: np.ndarray, hint: str = "; model.features names the columns that are used") -> np.ndarray:
    """float64 (N,), NaN where a number is missing. A number may be written as text: one "?" makes text of a whole column."""
    if column.ndim != 1:
        raise DataError(f"column {name}: a value of it is an array of {column.shape[1:]}, not a number")
    if column.dtype.kind not in "biuf":
        values = (column if column.dtype == object else column.astype(str)).tolist()
        odd = (row for row, value in enumerate(values) if not (value is None or isinstance(value, (Real, Decimal)) or _is_number(value)))
        if (row := next(odd, None)) is not None:
            raise DataError(f"column {name}: {values[row]!r} is not a number{hint}", row)
    x_N = column.astype(np.float64)
    if (large := np.abs(x_N) > _LARGEST).any():
        row = int(np.argmax(large))
        raise DataError(f"column {name}: {x_N[row]:g} is too large, the largest is {_LARGEST:.1e}; leave a missing number empty", row)
    return x_N


def complete(name: str, column: np.ndarray) -> np.ndarray:
    """float64 (N,), none missing. Raises DataError, with the row, where one is missing or no number."""
    x_N = numbers(name, column, hint="")
    if (missing := np.isnan(x_N)).any():
        raise DataError(f"column {name}: is missing", int(np.argmax(missing)))
    return x_N


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(np.isfinite(float(value)))
    except ValueError:
        return False


def _column(series: pd.Series) -> np.ndarray:
    """A column of a DataFrame: numbers with NaN, or objects with None, where a value is missing."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_complex_dtype(series):
        return series.to_numpy(np.float64, na_value=np.nan)
    return series.to_numpy(object, na_value=None)


def _check_columns(features: Sequence[str], given: Sequence[str]) -> None:
    missing = [name for name in features if name not in given]
    if missing:
        near = {name: difflib.get_close_matches(name, given, n=1, cutoff=0.5) for name in missing[:5]}
        sentences = [f"there is no column {name!r}" + (f", but {found[0]!r}" if found else "") for name, found in near.items()]
        more = f"; and {len(missing) - 5} more are missing" if len(missing) > 5 else ""
        raise DataError("; ".join(sentences) + f"{more}; columns given: {', '.join(given) or 'none'}")
    if twice := [name for name in features if list(given).count(name) > 1]:
        raise DataError(f"column {twice[0]}: was given more than once")
