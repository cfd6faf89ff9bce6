"""One label for each row of a table of numbers, out of a fixed set of classes: a sigmoid for two of them, softmax for more."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import AfterValidator

from ..base import Arrays, DataError, Encoding, choose_columns
from .classes import Classification, ClassServing, class_index, class_names, labels_in

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

# N rows, B rows of a batch, F features, K classes

_LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 1e-12


def _usable(features: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(features)) < len(features) or "label" in features:
        raise ValueError(f"a feature is stated once, and is not the label: {', '.join(features)}")
    return features


class TableEncoding(Encoding):
    """Class names in index order; names of the features in order, and their means and deviations over the training rows."""

    classes: tuple[str, ...]
    features: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class TabularClassification(Classification):
    """Raw rows: `label` (N,), integers or strings; each feature (N,), numbers. A missing number (NaN, None) counts as the training mean."""

    task: ClassVar[str] = "tabular classification"
    columns: ClassVar[tuple[str, ...]] = ("label",)
    encoding_type: ClassVar[type[Encoding]] = TableEncoding

    features: Annotated[tuple[str, ...], AfterValidator(_usable)] = ()
    """Columns that the label is told from, in order; empty: every column but the label."""

    def read_columns(self, available: Sequence[str], encoding: TableEncoding | None = None, *, target: bool = True) -> tuple[str, ...]:
        features = encoding.features if encoding else self.features or tuple(name for name in available if name != "label")
        if not features:
            raise DataError("there is no column but label; a classifier needs features")
        return choose_columns((*(["label"] if target else []), *features), available)

    def check(self, raw: Arrays) -> None:
        labels_in(raw["label"])
        _matrix(raw, [name for name in raw if name != "label"])

    def fit(self, batches: Iterable[Arrays]) -> TableEncoding:
        features: tuple[str, ...] = ()
        labels: set[Any] = set()
        moments = _Moments(np.zeros(1), np.zeros(1), np.zeros(1))
        for raw in batches:
            features = tuple(name for name in raw if name != "label")
            labels |= labels_in(raw["label"])
            moments = moments.with_rows(_matrix(raw, features))
        if not features:
            raise DataError("there are no training rows")
        if empty := [name for name, count in zip(features, moments.count_F, strict=True) if not count]:
            raise DataError(f"column {empty[0]}: is missing in every training row")
        return TableEncoding(
            classes=class_names(self.classes, labels),
            features=features,
            mean=tuple(moments.mean_F.tolist()),
            deviation=tuple(moments.deviation_F().tolist()),
        )

    def encode(self, raw: Arrays, encoding: TableEncoding) -> dict[str, np.ndarray]:
        x_NF = _matrix(raw, encoding.features)
        encoded = {"features": np.where(np.isnan(x_NF), np.array(encoding.mean), x_NF)}
        if "label" in raw:
            encoded["label"] = class_index(raw["label"], encoding.classes)
        return encoded

    def outputs(self, encoding: TableEncoding) -> int:
        """How many numbers the network says of a row: one for two classes, the logit of the second; else a logit for each class."""
        return 1 if len(encoding.classes) == 2 else len(encoding.classes)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["features"])

    def serving(self, encoding: TableEncoding) -> TableServing:
        return TableServing(self, encoding)


class TableServing(ClassServing):
    """Tables of numbers in, classes out."""

    def example(self, raw: Arrays) -> pd.DataFrame:
        import pandas as pd

        # all as floats: whoever calls the registered model may then leave out any number
        return pd.DataFrame({name: _numbers(name, column) for name, column in raw.items() if name != "label"})

    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        """A table: a DataFrame, or what makes one (a list of dicts, a dict of lists). Columns that are no features are passed over."""
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


class _Moments(NamedTuple):
    """How many numbers there are of each feature, their mean, and the sum of their squared distances from it.

    Batches are merged by these (Chan, Golub & LeVeque, 1979): sums of squares would cancel where the mean is large.
    """

    count_F: np.ndarray
    mean_F: np.ndarray
    square_F: np.ndarray

    def with_rows(self, x_NF: np.ndarray) -> _Moments:
        there_NF = ~np.isnan(x_NF)
        count_F = self.count_F + there_NF.sum(0)
        share_F = there_NF.sum(0) / np.maximum(count_F, 1)
        mean_F = np.where(there_NF, x_NF, 0).sum(0) / np.maximum(there_NF.sum(0), 1)
        square_F = (np.where(there_NF, x_NF - mean_F, 0) ** 2).sum(0)
        apart_F = mean_F - self.mean_F
        return _Moments(count_F, self.mean_F + apart_F * share_F, self.square_F + square_F + apart_F**2 * self.count_F * share_F)

    def deviation_F(self) -> np.ndarray:
        """Zero for a constant feature, which would otherwise seem to vary by rounding."""
        deviation_F = np.sqrt(self.square_F / self.count_F)
        return np.where(deviation_F > np.maximum(_ROUNDING * np.abs(self.mean_F), np.finfo(np.float64).tiny), deviation_F, 0.0)


def _matrix(raw: Arrays, features: Sequence[str]) -> np.ndarray:
    """float64 (N, F), NaN where a number is missing. Raises DataError naming column and row."""
    return np.column_stack([_numbers(name, raw[name]) for name in features])


def _numbers(name: str, column: np.ndarray) -> np.ndarray:
    """float64 (N,), NaN where a number is missing. A number may be written as text: one "?" makes text of a whole column."""
    if column.ndim != 1:
        raise DataError(f"column {name}: a value of it is an array of {column.shape[1:]}, not a number")
    if column.dtype.kind not in "biuf":
        values = (column if column.dtype == object else column.astype(str)).tolist()
        odd = (row for row, value in enumerate(values) if not (value is None or isinstance(value, (Real, Decimal)) or _is_number(value)))
        if (row := next(odd, None)) is not None:
            raise DataError(f"column {name}: {values[row]!r} is not a number; model.features names the columns that are used", row)
    x_N = column.astype(np.float64)
    if (large := np.abs(x_N) > _LARGEST).any():
        row = int(np.argmax(large))
        raise DataError(f"column {name}: {x_N[row]:g} is too large, the largest is {_LARGEST:.1e}; leave a missing number empty", row)
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
