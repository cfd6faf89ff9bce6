"""Tables of numbers: columns to one matrix of features, means and deviations, and the tables that a registered model is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from ..base import Arrays, DataError, Encoding, Names, Serving, Workload, choose_columns

if TYPE_CHECKING:
    import pandas as pd

# N rows, F features

NUMBERS = "biuf"  # numpy's letters for kinds of numbers
LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 1e-12


class FeatureEncoding(Encoding):
    """Names of the features in order, and their means and deviations over the training rows."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class Tabular(Workload):
    """Rows of a table: the target, and features (N,), numbers. A missing number (NaN, None) of a feature counts as the training mean."""

    features: Names = ()
    """Input columns, in order; empty: every column but the target."""

    @model_validator(mode="after")
    def _target_is_no_feature(self) -> Self:
        if self.target_column in self.features:
            raise ValueError(f"model.features: {self.target_column!r} is what is predicted, so no feature: {', '.join(self.features)}")
        return self

    def read_columns(self, available: Sequence[str], encoding: FeatureEncoding | None = None, *, target: bool = True) -> tuple[str, ...]:
        if encoding:
            features = encoding.features
        elif not (features := self.features or tuple(name for name in available if name != self.target_column)):
            raise DataError(f"there is no column but {self.target_column}; a prediction needs features")
        return choose_columns((*(self.columns if target else ()), *features), available)

    def check(self, raw: Arrays) -> None:
        super().check(raw)
        matrix(raw, self.feature_names(raw))

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
        table = data_frame(given, "a table (a DataFrame, a list of dicts, a dict of lists)")
        choose_columns(self.encoding.features, list(table.columns), renamed="")
        return self.encode({name: column_of(table, name) for name in self.encoding.features})


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
    hint = "; leave a missing number empty, and name the columns that are used in model.features"
    return np.column_stack([numbers(name, raw[name], hint=hint) for name in features])


def numbers(name: str, column: np.ndarray, *, complete: bool = False, hint: str = "") -> np.ndarray:
    """float64 (N,), NaN where a number is missing. A number may be written as text: one "?" makes text of a whole column.

    Raises DataError, with the row and `hint`, for what is no number, is none that single precision can hold, or, of a column that must
    be `complete`, is missing.
    """
    if column.ndim != 1:
        raise DataError(f"column {name}: a value of it is an array of {column.shape[1:]}, not a number")
    if column.dtype.kind not in NUMBERS:
        values = (column if column.dtype == object else column.astype(str)).tolist()
        odd = (row for row, value in enumerate(values) if not (value is None or isinstance(value, float) or is_number(value)))
        if (row := next(odd, None)) is not None:
            raise DataError(f"column {name}: {str(values[row])!r} is not a number{hint}", row)
    x_N = column.astype(np.float64)
    if (large := np.abs(x_N) > LARGEST).any():
        row = int(np.argmax(large))
        raise DataError(f"column {name}: {x_N[row]:g} is too large, the largest is {LARGEST:.1e}{hint}", row)
    if complete and (missing := np.isnan(x_N)).any():
        raise DataError(f"column {name}: is missing{hint}", int(np.argmax(missing)))
    return x_N


def is_number(value: Any) -> bool:
    """True for a finite number, and for a text that spells one."""
    try:
        return isinstance(value, (Real, Decimal, str, bytes)) and bool(np.isfinite(float(value)))
    except (ValueError, OverflowError):
        return False


def data_frame(given: Any, expected: str) -> pd.DataFrame:
    """The table that a registered model was given, its columns named by strings. Raises DataError where pandas can make none of it."""
    import pandas as pd

    try:
        if isinstance(given, str):
            raise ValueError("one string is a list of letters")
        return pd.DataFrame(given).rename(columns=str)
    except (TypeError, ValueError) as error:
        raise DataError(f"{expected} was expected, not {type(given).__name__}: {error}") from None


def column_of(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column that a table has: numbers with NaN, or objects with None, where a value is missing. Raises DataError if it has two of it."""
    import pandas as pd

    if list(table.columns).count(name) > 1:
        raise DataError(f"column {name}: was given more than once")
    series = table[name]
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_complex_dtype(series):
        return series.to_numpy(np.float64, na_value=np.nan)
    return series.to_numpy(object, na_value=None)
