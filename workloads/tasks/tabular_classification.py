"""One class for each row of a table of numbers: a sigmoid for two classes, softmax for more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..base import Arrays, Encoding, Serving
from .classes import Classification, ClassServing, Labels, class_index, labels_in
from .tables import FeatureEncoding, TableServing, Tabular, matrix

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

    def check(self, raw: Arrays) -> None:
        labels_in(raw["label"])
        matrix(raw, self.feature_names(raw))

    def fit(self, batches: Iterable[Arrays]) -> TableEncoding:
        labels = Labels()

        def counted() -> Iterator[Arrays]:
            for raw in batches:
                labels.add(raw["label"])
                yield raw

        learnt = self.learn_features(counted())
        return TableEncoding(**learnt.model_dump(), classes=labels.names(self.classes))

    def encode(self, raw: Arrays, encoding: TableEncoding) -> dict[str, np.ndarray]:
        encoded = {"features": self.encode_features(raw, encoding)}
        if "label" in raw:
            encoded["label"] = class_index(raw["label"], encoding.classes)
        return encoded

    def outputs(self, encoding: TableEncoding) -> int:
        """Outputs of the network for a row: one for two classes, the logit of the second; else a logit for each class."""
        return 1 if len(encoding.classes) == 2 else len(encoding.classes)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(batch["features"])
