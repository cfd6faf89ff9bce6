"""One class for each row of a table of numbers: a sigmoid for two classes, softmax for more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..base import Arrays, Encoding, Serving
from .classes import Classification, ClassServing, Labels, encoded_label
from .tables import FeatureEncoding, TableServing, Tabular

if TYPE_CHECKING:
    from torch import Tensor, nn


class TableEncoding(FeatureEncoding):
    """Class names in index order, beside the features."""

    classes: tuple[str, ...]


class ClassTableServing(TableServing, ClassServing):
    """Tables of numbers in, classes out."""


class TabularClassification(Tabular, Classification):
    """Raw rows: `label` (N,), integers or strings; each feature (N,), numbers. A missing number (NaN, None) counts as the training mean."""

    task: ClassVar[str] = "tabular classification"
    columns: ClassVar[tuple[str, ...]] = ("label",)
    encoding_type: ClassVar[type[Encoding]] = TableEncoding
    serving_type: ClassVar[type[Serving]] = ClassTableServing

    def fit(self, batches: Iterable[Arrays]) -> TableEncoding:
        labels = Labels()
        learnt = self.learn_features(labels.of(batches))
        return TableEncoding(**learnt.model_dump(), classes=labels.names(self.classes))

    def encode(self, raw: Arrays, encoding: TableEncoding) -> dict[str, np.ndarray]:
        return {"features": self.encode_features(raw, encoding)} | encoded_label(raw, encoding.classes)

    def outputs(self, encoding: TableEncoding) -> int:
        """Outputs of the network for a row: one for two classes, the logit of the second; else a logit for each class."""
        return 1 if len(encoding.classes) == 2 else len(encoding.classes)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["features"])
