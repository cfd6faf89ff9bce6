"""Run a model over a prepared split in parallel chunks and score every example; prepare the split where it is not there.

A chunk is scored by one process and its scores pass through the store, so a chunk can be worked on any node.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data import dataset as prepared
from pipelines.data import preparation as preparing
from pipelines.data.dataset import MANIFEST, Dataset
from pipelines.data.preparation import Each
from pipelines.data.store import Store, store_of
from pipelines.evaluation.models import Model
from workloads import inference
from workloads.base import DataError
from workloads.judging import Judged, Score, joined

if TYPE_CHECKING:
    from torch import nn

_CHUNK_EXAMPLES, _MOST_CHUNKS = 1024, 64
_BATCH_VALUES, _MOST_BATCH = 1 << 20, 256
_NETWORKS: dict[str, nn.Module] = {}
"""The network that was loaded last, by its weights' file and hash."""


@dataclass(frozen=True)
class Scorer:
    """Scores examples [start, stop) of a split into a file of the folder `work` of a store."""

    model: Model
    store: Store
    fingerprint: str
    split: str
    work: str

    def __call__(self, chunk: Sequence[int]) -> str:
        """The name of the file with the chunk's scores."""
        start, stop = chunk
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
    """Every example of a split of a dataset with its scores, in order. Raises DataError if there is none."""
    store = store_of(model.run)
    work = f".judged.{uuid.uuid4().hex[:8]}"
    try:
        names = each(Scorer(model, store, dataset.manifest.fingerprint, split, work), chunks(len(_examples(model, dataset, split))))
        with store.workspace() as here:
            return joined([_load(store.get(work, name, here)) for name in names])
    finally:
        store.remove(work)


def own_data(model: Model, each: Each) -> Dataset:
    """The dataset that the model was trained on; made anew where it is gone. Raises DataError if that gives another."""
    store = store_of(model.run)
    if store.has(model.fingerprint, MANIFEST):
        return prepared.proven(store, model.fingerprint)
    plan = preparing.plan(model.run)
    if plan.fingerprint != model.fingerprint:
        raise DataError(
            f"{model.called}: its data {model.fingerprint} are not in {store.place} any more, and {model.run.data.name} is now "
            f"{plan.fingerprint}: its content, or the code that prepares it, has changed; name data to judge on with data.source=…"
        )
    return preparing.prepare(model.run, plan, each)


def chunks(examples: int) -> list[tuple[int, int]]:
    """[start, stop) of each chunk; none depends on who works them."""
    size = max(_CHUNK_EXAMPLES, -(-examples // _MOST_CHUNKS))
    return [(start, min(start + size, examples)) for start in range(0, examples, size)]


def batch_of(example: dict[str, np.ndarray]) -> int:
    """Examples of one forward pass: fewer where one is large."""
    return int(np.clip(_BATCH_VALUES // max(1, sum(column.size for column in example.values())), 1, _MOST_BATCH))


def network_of(model: Model) -> tuple[nn.Module, str]:
    """The model's network and the device that it is on. A process that works several chunks loads it once."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = f"{model.weights} {model.weights_sha256}"
    if key not in _NETWORKS:
        _NETWORKS.clear()
        _NETWORKS[key] = model.network().to(device)
    return _NETWORKS[key], device


def _examples(model: Model, dataset: Dataset, split: str) -> Any:
    return model.workload.examples(getattr(dataset, split), training=False)


def _save(path: Path, part: Judged) -> None:
    arrays: dict[str, Any] = {f"column {name}": column for name, column in part.columns.items()}
    for name, score in part.scores.items():
        arrays |= {f"score {name} total": score.total, f"score {name} count": score.count}
    np.savez(path, allow_pickle=False, **arrays)


def _load(path: Path) -> Judged:
    with np.load(path, allow_pickle=False) as file:
        columns = {name.removeprefix("column "): file[name] for name in file.files if name.startswith("column ")}
        names = dict.fromkeys(name.split(" ")[1] for name in file.files if name.startswith("score "))
        scores = {name: Score(file[f"score {name} total"], file[f"score {name} count"]) for name in names}
    return Judged(columns, scores)
