"""A registered model as MLflow loads it: weights, settings and encoding from a folder, raw input in, readable columns out.

MLflow calls `_load_pyfunc`. This package lies beside the model under a name of its own, and needs nothing else of the project.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import inference
from .base import DataError, Encoding, Workload

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

MODEL, WEIGHTS = "model.json", "weights.safetensors"
_BATCH_ROWS = 1024


class Served:
    """A trained workload that answers raw rows."""

    def __init__(self, workload: Workload, encoding: Encoding, network: nn.Module) -> None:
        self.workload, self.serving, self.network = workload, workload.serving(encoding), network.eval()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row of readable columns for each raw row, in order. Raises DataError, a ValueError, for input it cannot use."""
        import pandas as pd

        try:
            encoded = self.serving.inputs(model_input)
        except DataError as error:
            raise DataError(f"row {error.row}: {error}" if error.row is not None else str(error), error.row) from None
        outputs = inference.outputs(self.workload, self.serving.respond, self.network, encoded, batch_rows=_BATCH_ROWS)
        return pd.DataFrame(self.serving.decode(outputs))


def describe(workload: Workload, encoding: Encoding, weights_sha256: str) -> dict[str, Any]:
    """The content of model.json: everything but the weights."""
    kind = type(workload)
    return {
        "class": f"{kind.__module__.partition('.')[2]}:{kind.__qualname__}",
        "settings": workload.model_dump(mode="json"),
        "encoding": encoding.model_dump(mode="json"),
        "weights_sha256": weights_sha256,
    }


def _load_pyfunc(path: str) -> Served:
    from safetensors.torch import load

    folder = Path(path)
    described = json.loads((folder / MODEL).read_text())
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != described["weights_sha256"]:
        raise ValueError(f"{folder / WEIGHTS}: its content is not what was registered (sha256 differs)")
    module, _, name = described["class"].partition(":")
    kind: type[Workload] = getattr(importlib.import_module(f".{module}", __package__), name)
    workload = kind.model_validate(described["settings"])
    encoding = kind.encoding_type.model_validate(described["encoding"])
    network = workload.network(encoding)
    network.load_state_dict(load(weights))
    return Served(workload, encoding, network)
