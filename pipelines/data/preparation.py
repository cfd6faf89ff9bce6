"""Prepare: read raw rows, fit the encoding to the training ones, encode all, store them where every trial finds them.

The source is read twice, a few thousand rows at a time: once by this process, to fit, and once in pieces, by Ray Data or here, to encode.
So neither needs memory for more than a batch, and joining parts into shards none for more than a shard. Data that a model has not seen
are read once: their encoding is the model's own.
"""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import dataset as prepared
from pipelines.data import sources, splits
from pipelines.data.dataset import MANIFEST, Dataset, join, leaked, shards_of
from pipelines.data.encode import Batch, Each, Encoder, Piece, Selection, cut, training_rows
from pipelines.data.source import Source, joined
from pipelines.data.sources import ReadOptions
from pipelines.data.splits import SPLITS, Consecutive, Splitting
from pipelines.data.stats import Summary
from pipelines.data.store import Store, store_of
from pipelines.errors import RecipeError
from pipelines.run_settings import Run
from pipelines.sealed import digest
from pipelines.tracking.provenance import code_sha256, imported
from workloads.base import Arrays, DataError, Encoding, Workload, choose_columns, count_examples

WHOLE = "test"
"""The split that holds all rows of new data that are not divided."""
_PIECE_ROWS, _MOST_PIECES = 8192, 512
_EXAMPLES = 10


@dataclass(frozen=True)
class Plan:
    """The rows to prepare, and the name and store of the dataset."""

    selection: Selection
    identity: dict[str, str]
    """Content of the source: name -> sha256 or the like."""
    fingerprint: str
    store: Store
    splits: tuple[str, ...] = SPLITS
    """Those that must have rows."""
    divided: bool = True
    """False: all rows of the source count as one split."""

    @property
    def source(self) -> Source:
        return self.selection.source

    @property
    def folder(self) -> Path:
        """The folder of the dataset on this node, which may not exist yet."""
        return self.store.folder(self.fingerprint)

    @property
    def ready(self) -> bool:
        return self.store.has(self.fingerprint, MANIFEST)

    @property
    def pieces(self) -> list[Piece]:
        rows = self.source.rows()
        return cut(self.source, rows, max(_PIECE_ROWS, rows // _MOST_PIECES))


def plan(run: Run) -> Plan:
    """Find the source and name the dataset, reading no more than is needed to hash it. Raises DataError, RecipeError."""
    source = source_of(run)
    if run.data.on_bad_row == "skip" and not run.model.skippable:
        raise RecipeError("data.on_bad_row=skip: rows of a series follow one another in time, so none can be left out; fill the gaps")
    splitting = splits.splitting_of(run.data, run.model, source)
    with _errors_at(run.data.name):
        available = source.columns()
        choose_columns(splitting.columns, available)
        columns = _chosen(run.model, available, splitting.columns)
    _check_batch(run, _examples_of_rows(run, splitting, source.rows())["train"])
    fingerprinted = {
        "splits": run.data.splits.model_dump(mode="json"),
        "given": list(run.data.given) if run.data.train else None,
        "seed": run.data.seed,
        "mode": run.data.mode,
    }
    return _plan(run, source, columns, splitting, fingerprinted)


def plan_new(run: Run, encoding: Encoding, *, split: str | None, called: str) -> Plan:
    """Plan to encode data that a model (named `called` in errors) has not seen: one of the splits of the settings, or all rows.

    Raises DataError, which names the model's task where columns are missing.
    """
    source = source_of(run)
    with _errors_at(run.data.name):
        rows = source.rows()
        if not rows:
            raise DataError("has no rows")
        try:
            columns = run.model.read_columns(source.columns(), encoding)
        except DataError as error:
            raise DataError(f"{error}; {called} is a model of {run.model.task}") from None
    splitting: Splitting = Consecutive((0, 0, rows))
    if split:
        splitting = splits.settled(run.data, run.model, splits.splitting_of(run.data, run.model, source), source, columns)
    fingerprinted = {
        "cut": [split, run.data.splits.model_dump(mode="json"), run.data.seed, run.data.given] if split else None,
        "encoding": encoding.model_dump(mode="json"),
    }
    return replace(_plan(run, source, columns, splitting, fingerprinted), splits=(split or WHOLE,), divided=split is not None)


def prepare(run: Run, plan: Plan, each: Each, *, encoding: Encoding | None = None) -> Dataset:
    """The prepared dataset, made now unless it exists; a failed attempt leaves nothing behind.

    With `encoding`, a model's own, none is fitted. Raises DataError, and RecipeError if a batch is larger than what there is to train on.
    """
    if not plan.ready and encoding:
        _make(run, plan, encoding, {}, each, stored=plan.splits)
    elif not plan.ready:
        settled = _settled(run, plan)
        fitted, sample = _fit(settled.selection, settled.pieces)
        _make(run, settled, fitted, sample, each, stored=SPLITS[1:] if run.data.mode == "stream" else SPLITS)
    dataset = prepared.proven(plan.store, plan.fingerprint)
    _check_rows(run, plan, dataset.manifest.summary)
    if not encoding:
        _check_batch(run, examples(run, dataset)["train"])
    return dataset


def restored(run: Run, fingerprint: str, each: Each, *, called: str) -> Dataset:
    """The dataset that the model `called` was trained on, prepared anew where it is gone. Raises DataError if that gives another."""
    store = store_of(run.data, run.root)
    if store.has(fingerprint, MANIFEST):
        return prepared.proven(store, fingerprint)
    again = plan(run)
    if again.fingerprint != fingerprint:
        raise DataError(
            f"{called}: its data {fingerprint} are not in {store.place} any more, and {run.data.name} is now {again.fingerprint}: its "
            "content, or the code that prepares it, has changed; name data to judge on with data.source=…"
        )
    return prepare(run, again, each)


def examples(run: Run, dataset: Dataset) -> dict[str, int]:
    """The number of examples of each split. Raises DataError if one has none."""
    counts = {}
    for split in SPLITS:
        with _errors_at(f"{run.data.name}, {split} split"):
            counts[split] = len(run.model.examples(getattr(dataset, split), training=split == "train"))
    return counts | ({"train": dataset.manifest.summary.splits["train"]} if run.data.mode == "stream" else {})


def tell(dataset: Dataset, say: Callable[[str], None]) -> None:
    """Report skipped rows and rows that training and test share."""
    summary = dataset.manifest.summary
    if summary.skipped:
        say(f"{summary.read:,} rows read = {summary.used:,} used + {summary.skipped:,} skipped; the first of these:")
        for example in summary.examples:
            say(f"  {example}")
    if summary.leaked:
        say(f"warning: {summary.leaked:,} of {summary.splits['test']:,} test rows have the same input as a training row")


def in_process(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    """`Each` in this process, one piece after another."""
    return [work(piece) for piece in pieces]


def peek(run: Run, plan: Plan) -> Encoding:
    """The encoding of a prepared dataset, else one fitted to the first rows: enough to build the network and count its parameters."""
    if plan.ready:
        return run.model.encoding_type.model_validate(Dataset.open(prepared.fetch(plan.store, plan.fingerprint)).manifest.encoding)
    training = plan.selection.training(plan.pieces)
    first = next((raw for _, rows, raw in training if len(rows)), None)
    if first is None:
        raise DataError("there are no training rows")
    return run.model.fit([first])


def count(run: Run, plan: Plan) -> Mapping[str, int | None]:
    """Examples of each split, from the prepared dataset or from row numbers; None where these are not enough. Raises DataError."""
    if plan.ready:
        return examples(run, Dataset.open(prepared.fetch(plan.store, plan.fingerprint)))
    return _examples_of_rows(run, plan.selection.splitting, plan.source.rows())


def streamed(run: Run, plan: Plan, dataset: Dataset) -> tuple[Callable[[Any], Iterator[dict[str, np.ndarray]]], list[Piece]]:
    """The reader that encodes the training rows anew, and the pieces that it reads."""
    encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
    return functools.partial(training_rows, _settled(run, plan).selection, encoding), plan.pieces


def source_of(run: Run) -> Source:
    """Open what `data.source`, or `data.train` and its like, names. Raises DataError."""
    data = run.data
    how = ReadOptions(run.root / "datasets", data.columns, run.model.files, skip=data.on_bad_row == "skip")
    return sources.open_splits(data.given, how) if data.train else sources.open_source(data.source or "", how)


def _plan(run: Run, source: Source, columns: tuple[str, ...], splitting: Splitting, fingerprinted: Mapping[str, Any]) -> Plan:
    """The plan, named by a hash of all that decides the content of the dataset: `fingerprinted`, the source, the task and the code."""
    skip, identity = run.data.on_bad_row == "skip", source.identity()
    made_of = {
        "source": identity,
        "columns": columns,
        "skip": skip,
        "task": run.model.task_settings(),
        "code": _code_version(type(run.model)),
    }
    selection = Selection(source, columns, splitting, run.model, skip=skip)
    return Plan(selection, identity, digest(made_of | dict(fingerprinted))[:16], store_of(run.data, run.root))


def _make(run: Run, plan: Plan, encoding: Encoding, sample: Arrays, each: Each, *, stored: tuple[str, ...]) -> None:
    """Encode the pieces into parts, join these into shards, write the manifest. Of splits not `stored` the first batch is kept."""
    store, work = plan.store, f".parts.{uuid.uuid4().hex[:8]}"
    encoder = Encoder(plan.selection, encoding, store, work, stored)
    try:
        with store.writing(plan.fingerprint, last=MANIFEST) as folder:
            encoded = each(encoder, plan.pieces)
            summary = _checked(run, plan, encoded) + Summary(leaked=leaked(store, work, encoded))
            if streamed := tuple(split for split in plan.splits if split not in stored):  # some rows of it tell the naive baseline
                encoded = [replace(encoder, kept=streamed).head(Piece(0, 0, plan.source.rows())), *encoded]
            prepared.finish(
                store,
                folder,
                each(functools.partial(join, store, work, folder), shards_of(encoded)),
                fingerprint=plan.fingerprint,
                source=plan.identity,
                encoding=encoding.model_dump(mode="json"),
                summary=summary,
                sample=sample,
            )
    finally:
        store.remove(work)


def _settled(run: Run, plan: Plan) -> Plan:
    """The plan, its labels read where the splitting depends on them."""
    chosen = plan.selection
    splitting = splits.settled(run.data, run.model, chosen.splitting, chosen.source, chosen.columns)
    return replace(plan, selection=replace(chosen, splitting=splitting))


def _chosen(workload: Workload, available: Sequence[str], splitting: Sequence[str]) -> tuple[str, ...]:
    """The columns that the task is given: not those that only assign rows to splits, unless it asks for them by name."""
    try:
        return workload.read_columns([name for name in available if name not in splitting])
    except DataError:
        return workload.read_columns(available)


def _examples_of_rows(run: Run, splitting: Splitting, rows: int) -> dict[str, int | None]:
    """Examples of each split by row numbers alone, before any row is read; None where the splitting needs values."""
    if splitting.columns or run.data.splits.stratify:
        return dict.fromkeys(SPLITS)
    counts: dict[str, int | None] = {}
    for number, split in enumerate(SPLITS):
        with _errors_at(f"{run.data.name}, {split} split"):
            counts[split] = count_examples(run.model, len(splitting.rows_of(number, 0, rows, {})), training=split == "train")
    return counts


@contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Begin the sentence of a DataError with its place."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}", error.row) from None


def _fit(selection: Selection, pieces: Sequence[Piece]) -> tuple[Encoding, Arrays]:
    """The encoding, fitted to the training rows, and a few raw ones of them."""
    wanted = selection.workload.context + selection.workload.sample_rows
    sample: list[Arrays] = []
    bad: list[str] = []
    latest: tuple[Batch, np.ndarray] | None = None
    reading = True  # an error of the reading names its file already; one of `fit` is of the latest batch

    def training() -> Iterator[Arrays]:
        nonlocal latest, reading
        for batch, rows, raw in selection.training(pieces):
            latest, reading = (batch, rows), False
            bad.extend(f"{batch.place(row)}: {reason}" for row, reason in batch.bad.items() if len(bad) < _EXAMPLES)
            if len(rows):
                if (lacking := wanted - sum(len(next(iter(part.values()))) for part in sample)) > 0:
                    sample.append({name: column[:lacking].copy() for name, column in raw.items()})
                yield raw
            reading = True
        reading = False
        if not sample:
            raise DataError("there are no training rows")

    try:
        return selection.workload.fit(training()), joined(sample)
    except DataError as error:
        if reading:
            raise
        where = selection.source.label if error.row is None or not latest else latest[0].place(int(latest[1][error.row]))
        left_out = "".join(f"\nleft out: {example}" for example in bad[:_EXAMPLES])
        raise DataError(f"{where}: {error}{left_out}") from None


def _checked(run: Run, plan: Plan, encoded: Sequence[dict[str, Any]]) -> Summary:
    """The sum of the pieces' summaries. Raises DataError if too many rows are bad, a split has none, or the source changed meanwhile."""
    skipped = plan.source.skipped()
    unread = Summary(read=skipped.count, skipped=skipped.count, examples=skipped.examples)
    summary = sum((Summary.model_validate(piece["summary"]) for piece in encoded), unread)
    _check_rows(run, plan, summary)
    if changed := [name for name, content in plan.source.identity().items() if plan.identity.get(name) != content]:
        raise DataError(f"{changed[0]}: changed while {run.data.name} was being read; give the command again")
    assert summary.closes, summary
    return summary


def _check_rows(run: Run, plan: Plan, summary: Summary) -> None:
    if summary.skipped > run.data.max_bad_fraction * summary.read:
        listed = "\n".join(summary.examples)
        raise DataError(
            f"{run.data.name}: {summary.skipped:,} of {summary.read:,} rows cannot be used, more than "
            f"data.max_bad_fraction={run.data.max_bad_fraction:g} allows; the first of them:\n{listed}"
        )
    if empty := [split for split in plan.splits if not summary.splits.get(split)]:
        lacking = f"the {empty[0]} split has no rows; give it a larger share, or more data" if plan.divided else "has no rows"
        raise DataError(f"{run.data.name}: {lacking}")


def _check_batch(run: Run, examples: int | None) -> None:
    if examples is not None and run.train.batch > examples:
        raise RecipeError(f"train.batch={run.train.batch} is larger than the {examples:,} training examples of {run.data.name}")


def _code_version(workload: type[Workload]) -> str:
    """Hash of the code that decides what is in a dataset: the task and what it imports, the reading, the splitting, the writing."""
    task = {file for method in (workload.fit, workload.encode) for file in imported(Path(inspect.getfile(method)), nested=False)}
    return code_sha256({*task, *Path(__file__).parent.rglob("*.py")})
