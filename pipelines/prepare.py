"""Prepare: read raw rows, learn the encoding from the training ones, encode all, keep them where every trial finds them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import prepared, sources
from pipelines.data.prepared import Dataset
from pipelines.data.sources import Source
from pipelines.data.splits import SPLITS, Consecutive, Drawn, Splitting
from pipelines.errors import RecipeError
from pipelines.integrity import code_sha256, imported
from pipelines.settings import Run
from workloads.base import Arrays, DataError, Encoding, Workload

_PIECE_ROWS = 8192

Each = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""How pieces are worked: `each(work, pieces)` gives the results in order (a loop here, or cluster.shards on Ray Data)."""


@dataclass(frozen=True)
class Plan:
    """What would be prepared: from where, cut how, under which name."""

    source: Source
    columns: tuple[str, ...]
    splitting: Splitting
    identity: dict[str, str]
    fingerprint: str
    folder: Path

    @property
    def ready(self) -> bool:
        return (self.folder / prepared.MANIFEST).is_file()


def plan(run: Run) -> Plan:
    """Find the source and name the dataset, reading no more than is needed to hash it. Raises DataError, RecipeError."""
    source = sources.open_source(run.data.source, run.data.columns)
    try:
        columns = run.model.choose(source.columns())
    except DataError as error:
        raise DataError(f"{run.data.source}: {error}") from None
    rows, identity = source.rows(), source.identity()
    splitting = _splitting(run, rows)
    _check_batch(run, _examples_of_rows(run, splitting, rows)["train"])
    made_of = {
        "source": identity,
        "columns": columns,
        "splits": run.data.splits.model_dump(mode="json"),
        "seed": run.data.seed,
        "task": run.model.task_settings(),
        "code": _code_version(type(run.model)),
    }
    fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return Plan(source, columns, splitting, identity, fingerprint, run.root / "datasets" / fingerprint)


def prepare(run: Run, plan: Plan, each: Each) -> Dataset:
    """The prepared dataset, made now unless it is there already. Raises DataError; a failed attempt leaves nothing behind.

    Raises RecipeError if a batch is larger than what there is to train on.
    """
    dataset = Dataset.open(plan.folder) if plan.ready else _make(run, plan, each)
    _check_batch(run, examples(run, dataset)["train"])
    return dataset


def examples(run: Run, dataset: Dataset) -> dict[str, int]:
    """How many examples each split holds. Raises DataError if one holds none."""
    found = {}
    for split in SPLITS:
        with _naming(f"{run.data.source}, {split} split"):
            found[split] = len(run.model.examples(getattr(dataset, split), training=split == "train"))
    return found


def _make(run: Run, plan: Plan, each: Each) -> Dataset:
    partial = prepared.partial_folder(plan.folder)
    try:
        rows = plan.source.rows()
        pieces = [(number, start, min(start + _PIECE_ROWS, rows)) for number, start in enumerate(range(0, rows, _PIECE_ROWS))]
        encoding, sample = _fit(run.model, plan, pieces)
        work = functools.partial(_encode, plan=plan, workload=run.model, encoding=encoding, partial=partial)
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
    return run.model.fit(iter([plan.source.read(0, min(_PIECE_ROWS, plan.source.rows()), plan.columns)]))


def count(run: Run, plan: Plan) -> Mapping[str, int | None]:
    """Examples of each split, from the prepared dataset or from numbers of rows; None where these cannot tell. Raises DataError."""
    if plan.ready:
        return examples(run, Dataset.open(plan.folder, verify=False))
    return _examples_of_rows(run, plan.splitting, plan.source.rows())


def _splitting(run: Run, rows: int) -> Splitting:
    shares = run.data.splits
    if not run.model.ordered:
        if shares.are_rows:
            raise RecipeError("data.splits: numbers of rows are for data that have an order; rows without one are drawn by shares")
        return Drawn(shares.sizes, run.data.seed)
    if not shares.are_rows:
        return Consecutive.by_shares(rows, shares.sizes, run.model.context)
    if sum(shares.sizes) > rows:
        raise DataError(f"data.splits asks for {sum(shares.sizes):,.0f} rows, but {run.data.source} has {rows:,}")
    return Consecutive((int(shares.train), int(shares.validation), int(shares.test)), run.model.context)


def _examples_of_rows(run: Run, splitting: Splitting, rows: int) -> dict[str, int | None]:
    """What can be told from numbers of rows alone, before any is read."""
    found = {}
    for number, split in enumerate(SPLITS):
        with _naming(f"{run.data.source}, {split} split"):
            found[split] = run.model.count(len(splitting.rows_of(number, 0, rows)), training=split == "train")
    return found


def _check_batch(run: Run, examples: int | None) -> None:
    if examples is not None and run.train.batch > examples:
        raise RecipeError(f"train.batch={run.train.batch} is larger than the {examples:,} training examples of {run.data.source}")


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put where it was before the sentence of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}", error.row) from None


def _fit(workload: Workload, plan: Plan, pieces: Sequence[tuple[int, int, int]]) -> tuple[Encoding, Arrays]:
    """The encoding, learnt from the training rows, and a few of these as they are."""
    sample: dict[str, np.ndarray] = {}
    given = np.empty(0, np.int64)  # the row numbers of the batch that is being learnt from

    def training() -> Iterator[Arrays]:
        nonlocal given
        for _, start, stop in pieces:
            chosen = plan.splitting.rows_of(0, start, stop)
            if len(chosen):
                given = start + chosen
                raw = {name: column[chosen] for name, column in plan.source.read(start, stop, plan.columns).items()}
                sample.update({} if sample else {name: _storable(column[: workload.sample_rows]) for name, column in raw.items()})
                yield raw

    try:
        return workload.fit(training()), sample
    except DataError as error:
        raise DataError(_placed(plan.source, error, given)) from None


def _placed(source: Source, error: DataError, rows: np.ndarray) -> str:
    """The sentence of a problem that was met in `rows` of the source."""
    return f"{source.label}, row {rows[error.row]:,}: {error}" if error.row is not None else f"{source.label}: {error}"


def _storable(column: np.ndarray) -> np.ndarray:
    """Strings as numpy keeps them without pickling."""
    return np.array([str(value) for value in column]) if column.dtype == object else column


def _encode(piece: tuple[int, int, int], *, plan: Plan, workload: Workload, encoding: Encoding, partial: Path) -> str | None:
    """Encode one piece and write its parts; the problem as a sentence if its rows cannot be used."""
    number, start, stop = piece
    chosen = np.empty(0, np.int64)
    try:
        raw = plan.source.read(start, stop, plan.columns)
        for index, split in enumerate(SPLITS):
            chosen = plan.splitting.rows_of(index, start, stop)
            if len(chosen):
                arrays = workload.encode({name: column[chosen] for name, column in raw.items()}, encoding)
                prepared.write_part(partial, split, number, arrays)
    except DataError as error:
        return _placed(plan.source, error, start + chosen)
    return None


def _code_version(workload: type[Workload]) -> str:
    """Hash of the code that decides what is in a dataset: the task and what it imports, the reading, the splitting, the writing."""
    task = {file for method in (workload.fit, workload.encode) for file in imported(Path(inspect.getfile(method)), nested=False)}
    return code_sha256({*task, *Path(sources.__file__).parent.glob("*.py"), Path(__file__)})
