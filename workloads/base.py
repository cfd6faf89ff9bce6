"""The contract between what is trained (a workload) and how it is trained (the loop, the data, the registry).

A workload is one frozen settings class. Its fields are at once the documentation, the validation, the search space and the MLflow
parameters; its methods are the behaviour. It inherits from one task, which knows the data, and adds the network.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, cast

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from .judging import Judging

_MOST_SHOWN = 3
Arrays = Mapping[str, np.ndarray]
"""Columns of the same length: name -> array whose first axis counts rows."""


class DataError(ValueError):
    """The data cannot be used; the message names what was wrong and what would be right, `row` counts within the rows given."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def _stated_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"{twice[0]!r} is stated twice: {', '.join(names)}")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_stated_once)]
"""A setting: names in an order, none of them twice."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A sum and its count; added over micro-batches and workers, divided once (`value`)."""

    total: Any
    count: Any

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean as a plain number. Reads from the device: call it where you log."""
        return float(self.total) / float(self.count)


class Headline(NamedTuple):
    """The metric a task is judged by, and which direction is better."""

    metric: str
    mode: Literal["max", "min"]


class Rows(Protocol):
    """Prepared rows, addressed by index."""

    def __len__(self) -> int: ...

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Rows `index` (int64, any order, repeats allowed) of each column, gathered into new arrays."""
        ...


class Encoding(BaseModel):
    """State learnt from the training rows in order to encode any row: JSON, stored with the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(BaseModel):
    """Settings and behaviour of a training. Subclasses are tasks (how rows become arrays and scores) and, below them, networks.

    *Stored rows* are what `encode` makes and a prepared dataset holds; *examples* are what a step is given, made from them by `examples`:
    the rows themselves, or windows over a series that is stored once. Two objects hold what is done with the outputs of a network:
    `judging` scores them beside the truth, `serving` turns raw input into answers that a person reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    task: ClassVar[str]
    """The task's name, as shown by `raylway recipes`."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that a source must have."""
    files: ClassVar[tuple[str, ...]] = ()
    """Columns whose values may be paths of files: the task is then given the files' bytes."""
    ordered: ClassVar[bool] = False
    """Rows follow one another, as in a series or a text: the splits are consecutive parts, else they are drawn."""
    one_to_one: ClassVar[bool] = True
    """Each raw row is stored as one row, so examples can be counted before any row is read."""
    length_column: ClassVar[str | None] = None
    """Stored column with the length of a row, where rows differ: rows of about one length are put into one batch."""
    target_column: ClassVar[str | None] = None
    """Raw and stored column of what is predicted, where there is one: no input, so not read for predictions."""
    label_column: ClassVar[str | None] = None
    """The target column where it holds classes: they are counted, and splits can be stratified by them."""
    skippable: ClassVar[bool] = True
    """A bad row can be left out."""
    sample_rows: ClassVar[int] = 8
    """Raw training rows, besides `context`, that are kept as the example of a registered model's input."""
    headline: ClassVar[Headline]
    better: ClassVar[Mapping[str, Literal["max", "min"]]]
    """Every metric of the task, and which direction is better."""
    encoding_type: ClassVar[type[Encoding]]
    serving_type: ClassVar[type[Serving]]
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages that a registered model needs besides torch, numpy, pandas, pydantic and safetensors."""

    # ---- from raw rows to examples

    def read_columns(self, available: Sequence[str], encoding: Any = None, *, target: bool = True) -> tuple[str, ...]:
        """The columns to read, out of those a source has: to learn an encoding, or to encode with one. Raises DataError."""
        return choose_columns([name for name in self.columns if target or name != self.target_column], available)

    def check(self, raw: Arrays) -> None:
        """Raise DataError, with the row, for what no encoding could take; where bad rows are skipped, `fit` is not given them."""

    @abstractmethod
    def fit(self, batches: Iterable[Arrays]) -> Encoding:
        """Learn the encoding from raw training rows: one batch at least, none of them empty. Raises DataError."""

    @abstractmethod
    def encode(self, raw: Arrays, encoding: Any) -> dict[str, np.ndarray]:
        """Raw rows of a source to stored rows; without the target where `raw` lacks it. Raises DataError."""

    @property
    def context(self) -> int:
        """Rows before its own that an ordered split keeps, for its first examples to look back on."""
        return 0

    def examples(self, stored: Rows, *, training: bool) -> Rows:
        """The examples that stored rows hold, for training or for scoring. Raises DataError if there are none."""
        return stored

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch of examples in the shape that the network takes: where rows differ in length, cut to the longest."""
        return batch

    # ---- the network and its scores

    @abstractmethod
    def network(self, encoding: Any) -> nn.Module:
        """The network, weights drawn from torch's global generator."""

    def initialize(self, model: nn.Module) -> None:
        """Put pretrained weights into a fresh network; called once, before the first step of a run."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        """Loss (differentiable, a sum over rows) and metrics of one batch; used for training and evaluation alike.

        `Judging.from_means` makes the metrics of the curves from their means: the means themselves, unless the task says otherwise.
        """

    @abstractmethod
    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of the model for each example, as arrays with examples first."""

    @abstractmethod
    def baselines(self, train: Rows, test: Rows, encoding: Any) -> dict[str, dict[str, float]]:
        """Naive baselines by name, each with its metrics on the test examples, to compare a score with."""

    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: Any) -> dict[str, Figure]:
        """Pictures for the run page, by name; `outputs` are those of `predict` for the test examples. By default those of `judging`."""
        judging = self.judging(encoding)
        return judging.figures(judging.judge(outputs, test.take(np.arange(len(test)))))

    @abstractmethod
    def judging(self, encoding: Any) -> Judging:
        """The scores of outputs of `predict`, example by example."""

    def serving(self, encoding: Any) -> Serving:
        """The input and output of a registered model."""
        return self.serving_type(self, encoding)

    def task_settings(self) -> dict[str, Any]:
        """The settings that can change how rows are encoded: those that the task itself defines."""
        fields = {name for base in type(self).__mro__[1:] if issubclass(base, Workload) for name in base.model_fields}
        return self.model_dump(mode="json", include=fields)


class Serving(ABC):
    """A trained workload as a registered model and `raylway predict` use it: raw input in, columns that a person reads out."""

    def __init__(self, workload: Any, encoding: Any) -> None:
        self.workload, self.encoding = workload, encoding

    @abstractmethod
    def example(self, raw: Arrays) -> Any:
        """Raw training rows as a caller of the registered model would give them (an array or a DataFrame; without the target)."""

    @abstractmethod
    def inputs(self, given: Any) -> dict[str, np.ndarray]:
        """Encode what a registered model was given, by the code that encodes for training. Raises DataError."""

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """The columns to read of a source of rows to predict. Raises DataError."""
        return self.workload.read_columns(available, self.encoding, target=False)

    def encode(self, raw: Arrays) -> dict[str, np.ndarray]:
        """Encode raw rows of these columns, as `inputs` encodes what a registered model is given. Raises DataError."""
        return self.workload.encode(raw, self.encoding)

    @property
    def lookback(self) -> int:
        """Rows before its own that a prediction needs, where rows follow one another; the first rows have no prediction then."""
        return 0

    def windows(self, encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encoded rows in order as examples for `respond`: one for each row that has `lookback` rows before it."""
        return encoded

    def respond(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of a registered model for a batch of `inputs`."""
        return self.workload.predict(model, batch)

    @abstractmethod
    def decode(self, outputs: Arrays) -> dict[str, list]:
        """Outputs of `respond` as columns that a person reads."""

    def sample(self, model: nn.Module) -> str | None:
        """Text to read at each evaluation during training, such as what a language model writes."""
        return None


def count_examples(workload: Workload, rows: int, *, training: bool) -> int | None:
    """Examples that `rows` raw rows (the context included) will give; None where only encoding can tell. Raises DataError if none."""
    unread = cast("Rows", range(rows))  # their number is all that is asked for
    return len(workload.examples(unread, training=training)) if workload.one_to_one else None


def choose_columns(wanted: Sequence[str], available: Sequence[str], *, renamed: str = "data.columns.{}=") -> tuple[str, ...]:
    """`wanted`, if all of them are available; else a DataError that lists those there are and, behind `renamed`, the nearest names."""
    problems = []
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
            problems.append(f"there is no column {name!r}" + (f"; did you mean {renamed.format(name)}{near[0]}?" if near else ""))
    if problems:
        more = f"; and {len(problems) - _MOST_SHOWN} more are missing" if len(problems) > _MOST_SHOWN else ""
        raise DataError("; ".join(problems[:_MOST_SHOWN]) + f"{more}; columns: {', '.join(available) or 'none'}")
    return tuple(wanted)
