"""The contract between what is trained (a workload) and how it is trained (the loop, the data, the registry).

A workload is one frozen settings class. Its fields are at once the documentation, the validation, the search space and the MLflow
parameters; its methods are the behaviour. It inherits from one task, which knows the data, and adds the network.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from .judging import Judging

_TOLD = 3
Arrays = Mapping[str, np.ndarray]
"""Columns of the same length: name -> array whose first axis counts rows."""


class DataError(ValueError):
    """The data cannot be used; the message names what was wrong and what would be right, `row` counts within the rows given."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True, slots=True)
class Mean:
    """A sum and what it is a sum over; added over micro-batches and workers, divided once (`value`)."""

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
    """What was learnt from the training rows in order to encode any row: JSON, stored with the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(BaseModel):
    """What is trained. Subclasses are tasks (how rows become arrays and scores) and, below them, networks.

    *Stored rows* are what `encode` makes and a prepared dataset holds; *examples* are what a step is given, made from them by `examples`:
    the rows themselves, or windows over a series that is stored once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    task: ClassVar[str]
    """The task's name, as shown by `raylway recipes`."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that a source must have."""
    files: ClassVar[tuple[str, ...]] = ()
    """Columns whose values may be paths of files: the task is then given the files' bytes."""
    ordered: ClassVar[bool] = False
    """Whether rows follow one another, as in a series or a text: then the splits are consecutive parts, else they are drawn."""
    length_column: ClassVar[str | None] = None
    """Stored column that says how long a row is, where rows differ: rows of about one length are put into one batch."""
    label_column: ClassVar[str | None] = None
    """Raw and stored column of a row's class, where there are classes: they are counted, and rare ones are drawn by themselves."""
    skippable: ClassVar[bool] = True
    """Whether a bad row can be left out."""
    headline: ClassVar[Headline]
    better: ClassVar[Mapping[str, Literal["max", "min"]]]
    """Every metric that the task is judged by, and which direction is better."""
    encoding_type: ClassVar[type[Encoding]]
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages that a registered model needs besides torch, numpy, pandas, pydantic and safetensors."""

    # ---- from raw rows to examples

    def choose(self, available: Sequence[str]) -> tuple[str, ...]:
        """The columns to read, out of those that a source has. Raises DataError."""
        return choose_columns(self.columns, available)

    def needed(self, available: Sequence[str], encoding: Any) -> tuple[str, ...]:
        """The columns to read of data that are encoded with an `encoding` learnt before. Raises DataError."""
        return self.choose(available)

    def check(self, raw: Arrays) -> None:
        """Raises DataError, with the row, for what no encoding could take; where bad rows are skipped, `fit` is not given them."""

    @abstractmethod
    def fit(self, batches: Iterable[Arrays]) -> Encoding:
        """Learn the encoding from raw training rows. Raises DataError."""

    @abstractmethod
    def encode(self, raw: Arrays, encoding: Any) -> dict[str, np.ndarray]:
        """Raw rows of a source to stored rows. Raises DataError."""

    @property
    def context(self) -> int:
        """How many rows before its own an ordered split keeps, for its first examples to look back on."""
        return 0

    def examples(self, stored: Rows, *, training: bool) -> Rows:
        """The examples that stored rows hold, for training or for scoring. Raises DataError if there are none."""
        return stored

    def count(self, rows: int, *, training: bool) -> int | None:
        """How many examples `rows` raw rows (the context included) will give; None where only encoding them can tell."""
        return rows

    def collate(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch of examples as a network is given it: where rows differ in length, cut to the longest."""
        return batch

    # ---- the network, what it is scored by, what it says

    @abstractmethod
    def network(self, encoding: Any) -> nn.Module:
        """The network, weights drawn from torch's global generator."""

    def initialize(self, model: nn.Module) -> None:
        """Put pretrained weights into a fresh network; called once, before the first step of a run."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        """Loss (differentiable, a sum over rows) and metrics of one batch; used for training and evaluation alike."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model says of each example, as arrays with examples first."""

    @abstractmethod
    def baselines(self, train: Rows, test: Rows, encoding: Any) -> dict[str, dict[str, float]]:
        """Naive answers by name, each with its metrics on the test examples, so that a score can be judged."""

    @abstractmethod
    def figures(self, model: nn.Module, outputs: Arrays, test: Rows, encoding: Any) -> dict[str, Figure]:
        """Pictures for the run page, by name; `outputs` is what `predict` said of the test examples."""

    @abstractmethod
    def judging(self, encoding: Any) -> Judging:
        """How answers (`predict`) are judged beside their examples, one by one."""

    def sample(self, model: nn.Module, encoding: Any) -> str | None:
        """Something to read at each evaluation, such as generated text."""
        return None

    # ---- a registered model: raw input in, readable columns out

    @property
    def sample_rows(self) -> int:
        """How many raw training rows `model_input` needs to make an example of a registered model's input."""
        return 8

    @abstractmethod
    def model_input(self, raw: Arrays) -> Any:
        """Raw rows as a caller of the registered model would give them (an array or a DataFrame; no labels)."""

    @abstractmethod
    def inputs(self, given: Any, encoding: Any) -> dict[str, np.ndarray]:
        """What a registered model was given, encoded by the code that encodes for training. Raises DataError."""

    def asked(self, available: Sequence[str], encoding: Any) -> tuple[str, ...]:
        """The columns that an answer is made from, out of those that a source has: those of training, without labels. Raises DataError."""
        return choose_columns([name for name in self.columns if name != self.label_column], available)

    def ask(self, raw: Arrays, encoding: Any) -> dict[str, np.ndarray]:
        """Raw rows of these columns as `inputs` encodes what a registered model is given. Raises DataError."""
        return self.encode(raw, encoding)

    @property
    def lookback(self) -> int:
        """How many rows before its own an answer is made from, where rows follow one another; the first rows have no answer then."""
        return 0

    def windows(self, encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encoded rows in order as examples for `respond`: one for each row that has `lookback` rows before it."""
        return encoded

    def respond(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a registered model computes for `inputs`: `predict`, where a task needs nothing else."""
        return self.predict(model, batch)

    @abstractmethod
    def decode(self, outputs: Arrays, encoding: Any) -> dict[str, list]:
        """Outputs of `respond` as columns that a person reads."""

    def task_settings(self) -> dict[str, Any]:
        """The settings that can change how rows are encoded: those that the task itself defines."""
        fields = {name for base in type(self).__mro__[1:] if issubclass(base, Workload) for name in base.model_fields}
        return self.model_dump(mode="json", include=fields)


def choose_columns(wanted: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """`wanted`, if all of them are available; else a DataError that lists those there are and the nearest names."""
    problems = []
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
            problems.append(f"there is no column {name!r}" + (f"; did you mean data.columns.{name}={near[0]}?" if near else ""))
    if problems:
        more = f"; and {len(problems) - _TOLD} more are missing" if len(problems) > _TOLD else ""
        raise DataError("; ".join(problems[:_TOLD]) + f"{more}; columns: {', '.join(available)}")
    return tuple(wanted)
