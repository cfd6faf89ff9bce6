"""What a model says of the examples of a prepared split, judged piece by piece by whoever is set to it, and read back as one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data import dataset as prepared
from pipelines.data.dataset import Dataset
from pipelines.data.store import Store, store_of
from pipelines.evaluation.models import Model
from workloads import inference
from workloads.judging import Judged, Score, joined

if TYPE_CHECKING:
    from torch import nn

_PIECE_EXAMPLES, _MOST_PIECES = 1024, 64
_BATCH_VALUES, _MOST_BATCH = 1 << 20, 256
_NETWORKS: dict[str, nn.Module] = {}
"""The network that was loaded last, by its weights' file and hash."""

Each = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Judge:
    """Judges examples [start, stop) of a split and leaves what comes of it in the folder `work` of a store."""

    model: Model
    store: Store
    fingerprint: str
    split: str
    work: str

    def __call__(self, piece: Sequence[int]) -> str:
        """The name of the file that holds it."""
        start, stop = piece
        workload, examples = self.model.workload, _examples(self.model, prepared.proven(self.store, self.fingerprint), self.split)
        judging = workload.judging(self.model.encoding)
        network, device = network_of(self.model)
        size = batch_of(examples.take(np.arange(start, start + 1)))
        parts = []
        for low in range(start, stop, size):
            taken = examples.take(np.arange(low, min(low + size, stop)))
            outputs = inference.forward(workload.predict, network, [inference.tensors(workload, dict(taken), device)])
            parts.append(judging.judge({name: output.cpu().numpy() for name, output in outputs.items()}, taken))
        name = f"{start:012}.npz"
        with self.store.workspace() as here:
            _save(here / name, joined(parts))
            self.store.put(here / name, self.work, name)
        return name


def judged(model: Model, dataset: Dataset, split: str, each: Each) -> Judged:
    """Every example of a split of a dataset, judged. Raises DataError if there is none."""
    store = store_of(model.run)
    work = f".judged.{uuid.uuid4().hex[:8]}"
    try:
        names = each(Judge(model, store, dataset.manifest.fingerprint, split, work), pieces(len(_examples(model, dataset, split))))
        with store.workspace() as here:
            return joined([_load(store.get(work, name, here)) for name in names])
    finally:
        store.remove(work)


def pieces(examples: int) -> list[tuple[int, int]]:
    """[start, stop) of each piece; none depends on who works them."""
    size = max(_PIECE_EXAMPLES, -(-examples // _MOST_PIECES))
    return [(start, min(start + size, examples)) for start in range(0, examples, size)]


def batch_of(example: dict[str, np.ndarray]) -> int:
    """Examples of one forward pass: fewer where one is large."""
    return int(np.clip(_BATCH_VALUES // max(1, sum(column.size for column in example.values())), 1, _MOST_BATCH))


def _examples(model: Model, dataset: Dataset, split: str) -> Any:
    return model.workload.examples(getattr(dataset, split), training=False)


def network_of(model: Model) -> tuple[nn.Module, str]:
    """The model's network and the device that it is on. A process that works several pieces loads it once."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = f"{model.weights} {model.weights_sha256}"
    if key not in _NETWORKS:
        _NETWORKS.clear()
        _NETWORKS[key] = model.network().to(device)
    return _NETWORKS[key], device


def _save(path: Path, found: Judged) -> None:
    arrays: dict[str, Any] = {f"column {name}": column for name, column in found.columns.items()}
    for name, score in found.scores.items():
        arrays |= {f"score {name} total": score.total, f"score {name} count": score.count}
    np.savez(path, allow_pickle=False, **arrays)


def _load(path: Path) -> Judged:
    with np.load(path, allow_pickle=False) as file:
        columns = {name.removeprefix("column "): file[name] for name in file.files if name.startswith("column ")}
        names = dict.fromkeys(name.split(" ")[1] for name in file.files if name.startswith("score "))
        scores = {name: Score(file[f"score {name} total"], file[f"score {name} count"]) for name in names}
    return Judged(columns, scores)
