"""The contract between what is trained (a workload) and how it is trained (the loop, the data, the registry).

A workload is one frozen settings class. Its fields are at once the documentation, the validation, the search space and the MLflow
parameters; its methods are the behaviour. It inherits from one task, which knows the data, and adds the network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

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
    """What is trained. Subclasses are tasks (how rows become arrays and scores) and, below them, networks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    task: ClassVar[str]
    """The task's name, as shown by `raylway recipes`."""
    columns: ClassVar[tuple[str, ...]]
    """Columns a source must have."""
    headline: ClassVar[Headline]
    encoding_type: ClassVar[type[Encoding]]

    @abstractmethod
    def fit(self, batches: Iterable[Arrays]) -> Encoding:
        """Learn the encoding from raw training rows. Raises DataError."""

    @abstractmethod
    def encode(self, raw: Arrays, encoding: Any) -> dict[str, np.ndarray]:
        """Raw rows to fixed-shape arrays; the same code for preparing and for serving. Raises DataError."""

    @abstractmethod
    def network(self, encoding: Any) -> nn.Module:
        """The network, weights drawn from torch's global generator."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Mean]:
        """Loss (differentiable, a sum over rows) and metrics of one batch; used for training and evaluation alike."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model says of each row, as arrays with rows first."""

    @abstractmethod
    def decode(self, outputs: Arrays, encoding: Any) -> dict[str, list]:
        """Outputs of `predict` as columns that a person reads."""

    @abstractmethod
    def baseline(self, train: Rows, test: Rows, encoding: Any) -> dict[str, float]:
        """Test metrics of the naive answer, so that a score can be judged."""

    @abstractmethod
    def figures(self, outputs: Arrays, rows: Rows, encoding: Any) -> dict[str, Figure]:
        """Pictures of `predict`'s outputs on `rows` for the run page: name -> figure."""

    @abstractmethod
    def model_input(self, raw: Arrays) -> np.ndarray:
        """The part of raw rows that a registered model is given (no labels)."""

    @abstractmethod
    def raw_from_input(self, given: Any) -> Arrays:
        """Raw rows from what a registered model was given. Raises DataError."""

    def task_settings(self) -> dict[str, Any]:
        """The settings that the task itself defines: only these can change how rows are encoded."""
        fields = {name for base in type(self).__mro__[1:] if issubclass(base, Workload) for name in base.model_fields}
        return self.model_dump(mode="json", include=fields)
