"""Run a model over a prepared split in parallel chunks and score every example; read columns of the source for these examples.

A chunk is scored by one process and its scores pass through the store, so a chunk can be worked on any node.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import dataset as prepared
from pipelines.data.dataset import Dataset
from pipelines.data.encode import Each, Piece, Selection
from pipelines.data.splits import SPLITS
from pipelines.data.store import Store, store_of
from pipelines.errors import RecipeError
from pipelines.evaluation.models import Model
from workloads import inference
from workloads.base import DataError
from workloads.judging import Judged, Score, joined

_CHUNK_EXAMPLES, _MOST_CHUNKS = 1024, 64
_BATCH_VALUES, _MOST_BATCH = 1 << 20, 256


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
        workload, examples = self.model.workload, examples_of(self.model, prepared.proven(self.store, self.fingerprint), self.split)
        judging = workload.judging(self.model.encoding)
        network, device = self.model.loaded()
        values = sum(column.size for column in examples.take(np.arange(start, start + 1)).values())
        size = int(np.clip(_BATCH_VALUES // max(1, values), 1, _MOST_BATCH))  # fewer examples at once where one is large
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
    store, work = store_of(model.run.data, model.run.root), f".judged.{uuid.uuid4().hex[:8]}"
    count = len(examples_of(model, dataset, split))
    size = max(_CHUNK_EXAMPLES, -(-count // _MOST_CHUNKS))
    chunks = [(start, min(start + size, count)) for start in range(0, count, size)]  # none depends on who works them
    try:
        names = each(Scorer(model, store, dataset.manifest.fingerprint, split, work), chunks)
        with store.workspace() as here:
            return joined([_load(store.get(work, name, here)) for name in names])
    finally:
        store.remove(work)


def column_values(
    columns: Sequence[str], selection: Selection, pieces: Sequence[Piece], model: Model, dataset: Dataset, split: str
) -> dict[str, np.ndarray]:
    """Each column's value of each example of a split, objects (N,), read from the pieces of the source that the dataset was made of.

    Raises RecipeError for a column that the source has not, or a task whose examples are no rows of the source; DataError if the source has
    changed since.
    """
    source = selection.source
    if unknown := [name for name in columns if name not in source.columns()]:
        raise RecipeError(f"--slice {unknown[0]}: {source.label} has no such column; columns: {', '.join(source.columns())}")
    first = model.workload.judging(model.encoding).row_offset
    if first is None:
        raise RecipeError(f"--slice: {model.workload.task} stores tokens, which are no rows of the source: no column can slice it")
    if changed := [name for name, content in source.identity().items() if dataset.manifest.source.get(name) != content]:
        raise DataError(f"{changed[0]}: changed since {model.called} was trained on it, so its columns cannot slice the rows kept")
    examples, number = len(examples_of(model, dataset, split)), SPLITS.index(split)
    found: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for piece in pieces:
        for batch in selection.batches(piece, also=columns):
            kept = batch.numbers(number, model.encoding)
            for name in columns:
                found[name].append(np.asarray(batch.also[name], dtype=object)[kept])
    values = {name: np.concatenate(parts)[first : first + examples] for name, parts in found.items()}
    if (read := min(map(len, values.values()))) != examples:
        raise DataError(f"{source.label}: {examples:,} examples were judged, but {read:,} rows are there now; did it change?")
    return values


def examples_of(model: Model, dataset: Dataset, split: str) -> Any:
    """The examples that the model makes of a split's stored rows."""
    return model.workload.examples(getattr(dataset, split), training=False)


def _save(path: Path, part: Judged) -> None:
    arrays = {f"column {name}": column for name, column in part.columns.items()}
    for name, score in part.scores.items():
        arrays |= {f"total {name}": score.total, f"count {name}": score.count}
    np.savez(path, allow_pickle=False, **arrays)


def _load(path: Path) -> Judged:
    with np.load(path, allow_pickle=False) as file:

        def of(kind: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(kind): file[name] for name in file.files if name.startswith(kind)}

        counts = of("count ")
        return Judged(of("column "), {name: Score(total, counts[name]) for name, total in of("total ").items()})
