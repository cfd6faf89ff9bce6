"""How long an answer takes: one raw row through the path of a registered model, warm."""

from __future__ import annotations

import statistics
import time
from typing import Any

from pipelines.data.dataset import Dataset
from pipelines.errors import StorageError
from pipelines.evaluation.models import Model
from workloads.served import Served

_WARM, _MEASURED = 5, 30


def milliseconds(model: Model, dataset: Dataset) -> float:
    """The median of 30 answers to one raw training row, on this machine's CPU, after five that are not counted."""
    served = Served(model.workload, model.encoding, model.network())
    row = _one(model, dataset)
    seconds = []
    for number in range(_WARM + _MEASURED):
        began = time.perf_counter()
        served.predict(row)
        if number >= _WARM:
            seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _one(model: Model, dataset: Dataset) -> Any:
    if not dataset.sample:
        raise StorageError(f"{model.called}: its dataset {dataset.manifest.fingerprint} has no raw rows to be timed with")
    given = model.serving.example({name: column.copy() for name, column in dataset.sample.items()})  # mapped ones cannot be written
    return given.iloc[:1] if hasattr(given, "iloc") else given[:1]
