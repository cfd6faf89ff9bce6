"""Prepare: read raw rows, learn the encoding from the training ones, encode all, keep them where every trial finds them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data import prepared, sources, splits
from pipelines.data.prepared import Dataset
from pipelines.data.sources import Source
from pipelines.errors import RecipeError
from pipelines.integrity import code_sha256
from pipelines.settings import Run
from workloads import base
from workloads.base import Arrays, DataError, Encoding, Workload

_PIECE_ROWS = 8192
_SAMPLE_ROWS = 8

Each = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""How pieces are worked: `each(work, pieces)` gives the results in order (a loop here, or cluster.shards on Ray Data)."""


@dataclass(frozen=True)
class Plan:
    """What would be prepared: from where, under which name."""

    source: Source
    identity: dict[str, str]
    fingerprint: str
    folder: Path

    @property
    def ready(self) -> bool:
        return (self.folder / prepared.MANIFEST).is_file()


def plan(run: Run) -> Plan:
    """Find the source and name the dataset, reading no more than is needed to hash it. Raises DataError, RecipeError."""
    source = sources.open_source(run.data.source)
    rows, identity = source.rows(), source.identity()
    training = int((_split(run, 0, rows) == 0).sum())
    if run.train.batch > training:
        raise RecipeError(f"train.batch={run.train.batch} is larger than the training rows of {run.data.source}: {training:,} of {rows:,}")
    made_of = {
        "source": identity,
        "splits": run.data.splits.model_dump(mode="json"),
        "seed": run.data.seed,
        "task": run.model.task_settings(),
        "code": _code_version(type(run.model)),
    }
    fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return Plan(source, identity, fingerprint, run.root / "datasets" / fingerprint)


def prepare(run: Run, plan: Plan, each: Each) -> Dataset:
    """The prepared dataset, made now unless it is there already. Raises DataError; a failed attempt leaves nothing behind."""
    if plan.ready:
        return Dataset.open(plan.folder)
    partial = prepared.partial_folder(plan.folder)
    try:
        rows = plan.source.rows()
        pieces = [(number, start, min(start + _PIECE_ROWS, rows)) for number, start in enumerate(range(0, rows, _PIECE_ROWS))]
        training = _training_rows(run, plan.source, pieces)
        first = next(training, {})
        sample = {name: column[:_SAMPLE_ROWS] for name, column in first.items()}
        encoding = run.model.fit(_again(first, training))
        work = functools.partial(_encode, source=plan.source, workload=run.model, encoding=encoding, run=run, partial=partial)
        problems = [problem for problem in each(work, pieces) if problem]
        if problems:
            raise DataError("\n".join(problems))
        return prepared.finish(
            partial,
            plan.folder,
            fingerprint=plan.fingerprint,
            source=plan.identity,
            encoding=encoding.model_dump(mode="json"),
            sample=sample,
        )
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def in_process(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    """Work the pieces one after another, here."""
    return [work(piece) for piece in pieces]


def peek(run: Run, plan: Plan) -> Encoding:
    """The encoding of a prepared dataset, else one learnt from the first piece: enough to build and count the network."""
    if plan.ready:
        return run.model.encoding_type.model_validate(Dataset.open(plan.folder, verify=False).manifest.encoding)
    return run.model.fit(iter([plan.source.read(0, min(_PIECE_ROWS, plan.source.rows()))]))


def count(run: Run, plan: Plan) -> dict[str, int]:
    """Rows of each split, without reading them."""
    belongs = _split(run, 0, plan.source.rows())
    return {split: int((belongs == index).sum()) for index, split in enumerate(splits.SPLITS)}


def _again(first: Arrays, rest: Iterator[Arrays]) -> Iterator[Arrays]:
    if first:
        yield first
    yield from rest


def _split(run: Run, start: int, stop: int) -> Any:
    shares = run.data.splits
    return splits.split_of(start, stop, shares=(shares.train, shares.validation, shares.test), seed=run.data.seed)


def _training_rows(run: Run, source: Source, pieces: Sequence[tuple[int, int, int]]) -> Iterator[Arrays]:
    for _, start, stop in pieces:
        chosen = _split(run, start, stop) == 0
        if chosen.any():
            yield {name: column[chosen] for name, column in source.read(start, stop).items()}


def _encode(piece: tuple[int, int, int], *, source: Source, workload: Workload, encoding: Encoding, run: Run, partial: Path) -> str | None:
    """Encode one piece and write its parts; the problem as a sentence if its rows cannot be used."""
    number, start, stop = piece
    try:
        arrays = workload.encode(source.read(start, stop), encoding)
    except DataError as error:
        return f"{source.label}, row {start + error.row:,}: {error}" if error.row is not None else f"{source.label}: {error}"
    belongs = _split(run, start, stop)
    for index, split in enumerate(splits.SPLITS):
        chosen = belongs == index
        if chosen.any():
            prepared.write_part(partial, split, number, {name: column[chosen] for name, column in arrays.items()})
    return None


def _code_version(workload: type[Workload]) -> str:
    """Hash of the code that decides what is in a dataset: the task, the reading, the splitting, the writing."""
    task = inspect.getfile(workload.__mro__[1])
    return code_sha256(task, *(inspect.getfile(module) for module in (base, sources, splits, prepared)))
