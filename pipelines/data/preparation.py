"""Prepare: read raw rows, learn the encoding from the training ones, encode all, keep them where every trial finds them.

The source is read twice, a few thousand rows at a time: once by this process, to learn, and once in pieces by whoever `each` sets to it,
to encode. So neither needs memory for more than a batch, and joining parts into shards none for more than a shard.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import dataset as prepared
from pipelines.data import dividing, joining, sources
from pipelines.data.dataset import MANIFEST, Dataset, Shard
from pipelines.data.encode import Batch, Encoder, Piece, Selection, Streamed, cut
from pipelines.data.source import Source, joined
from pipelines.data.sources import Reading
from pipelines.data.splits import SPLITS, Splitting
from pipelines.data.stats import Summary
from pipelines.data.store import Store, store_of
from pipelines.errors import RecipeError
from pipelines.run_settings import Run
from pipelines.tracking.provenance import code_sha256, imported
from workloads.base import Arrays, DataError, Encoding, Workload, choose_columns, count_examples

_PIECE_ROWS, _MOST_PIECES = 8192, 512
_TOLD = 10

Each = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""How pieces are worked: `each(work, pieces)` gives the results in order (a loop here, or cluster.ray_data on Ray Data)."""


@dataclass(frozen=True)
class Plan:
    """What would be prepared: from where, cut how, kept where under which name."""

    source: Source
    columns: tuple[str, ...]
    splitting: Splitting
    identity: dict[str, str]
    fingerprint: str
    store: Store

    @property
    def folder(self) -> Path:
        """Where the dataset is, or will be, on this node."""
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
    splitting = dividing.splitting_of(run, source)
    with naming(run.data.name):
        there = source.columns()
        choose_columns(splitting.columns, there)
        columns = _chosen(run.model, there, splitting.columns)
    rows, identity = source.rows(), source.identity()
    _check_batch(run, _examples_of_rows(run, splitting, rows)["train"])
    made_of = {
        "source": identity,
        "columns": columns,
        "splits": run.data.splits.model_dump(mode="json"),
        "given": list(run.data.given) if run.data.train else None,
        "seed": run.data.seed,
        "mode": run.data.mode,
        "skip": run.data.on_bad_row == "skip",
        "task": run.model.task_settings(),
        "code": code_version(type(run.model)),
    }
    fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return Plan(source, columns, splitting, identity, fingerprint, store_of(run))


def prepare(run: Run, plan: Plan, each: Each) -> Dataset:
    """The prepared dataset, made now unless it is there already. Raises DataError; a failed attempt leaves nothing behind.

    Raises RecipeError if a batch is larger than what there is to train on.
    """
    if not plan.ready:
        _make(run, plan, each)
    dataset = prepared.proven(plan.store, plan.fingerprint)
    check_bad(run, dataset.manifest.summary)
    _check_batch(run, examples(run, dataset)["train"])
    return dataset


def examples(run: Run, dataset: Dataset) -> dict[str, int]:
    """How many examples each split holds. Raises DataError if one holds none."""
    found = {}
    for split in SPLITS:
        with naming(f"{run.data.name}, {split} split"):
            found[split] = len(run.model.examples(getattr(dataset, split), training=split == "train"))
    return found | ({"train": dataset.manifest.summary.splits["train"]} if run.data.mode == "stream" else {})


def tell(dataset: Dataset, say: Callable[[str], None]) -> None:
    """Say what is not as one would wish: rows left out, rows that training and test share."""
    summary = dataset.manifest.summary
    if summary.skipped:
        say(f"{summary.read:,} rows read = {summary.used:,} used + {summary.skipped:,} skipped; the first of these:")
        for example in summary.examples:
            say(f"  {example}")
    if summary.leaked:
        say(f"warning: {summary.leaked:,} of {summary.splits['test']:,} test rows have the same input as a training row")


def in_process(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    """Work the pieces one after another, here."""
    return [work(piece) for piece in pieces]


def peek(run: Run, plan: Plan) -> Encoding:
    """The encoding of a prepared dataset, else one learnt from the first rows: enough to build and count the network."""
    if plan.ready:
        return run.model.encoding_type.model_validate(Dataset.open(prepared.fetch(plan.store, plan.fingerprint)).manifest.encoding)
    training = _selection(run, plan, plan.splitting).training(plan.pieces)
    return run.model.fit(itertools.islice((raw for _, rows, raw in training if len(rows)), 1))


def count(run: Run, plan: Plan) -> Mapping[str, int | None]:
    """Examples of each split, from the prepared dataset or from numbers of rows; None where these cannot tell. Raises DataError."""
    if plan.ready:
        return examples(run, Dataset.open(prepared.fetch(plan.store, plan.fingerprint)))
    return _examples_of_rows(run, plan.splitting, plan.source.rows())


def streamed(run: Run, plan: Plan, dataset: Dataset) -> tuple[Streamed, list[Piece]]:
    """What reads the training rows anew, and the pieces that it reads."""
    encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
    return Streamed(_settled_selection(run, plan), encoding), plan.pieces


def _make(run: Run, plan: Plan, each: Each) -> None:
    store, work = plan.store, f".parts.{uuid.uuid4().hex[:8]}"
    try:
        with store.writing(plan.fingerprint, last=MANIFEST) as folder:
            selection = _settled_selection(run, plan)
            encoding, sample = _fit(selection, plan.pieces)
            stream = run.data.mode == "stream"
            told = each(Encoder(selection, encoding, store, work, SPLITS[1:] if stream else SPLITS), plan.pieces)
            summary = _checked(run, plan, told)
            if stream:  # a few training rows are kept all the same, to tell naive answers by
                told = [Encoder(selection, encoding, store, work, SPLITS[:1]).head(Piece(0, 0, plan.source.rows())), *told]
            else:
                summary += Summary(leaked=joining.leaked(store, work, told))
            joined = each(joining.Joiner(store, work, folder), joining.shared_out(told))
            prepared.finish(
                store,
                folder,
                fingerprint=plan.fingerprint,
                source=plan.identity,
                shards=[Shard.model_validate(one["shard"]) for one in joined],
                columns=joined[0]["columns"],
                encoding=encoding.model_dump(mode="json"),
                summary=summary,
                sample=sample,
            )
    finally:
        store.remove(work)


def _settled_selection(run: Run, plan: Plan) -> Selection:
    return _selection(run, plan, dividing.settled(run, plan.splitting, plan.source, plan.columns))


def _selection(run: Run, plan: Plan, splitting: Splitting) -> Selection:
    return Selection(plan.source, plan.columns, splitting, run.model, skip=run.data.on_bad_row == "skip")


def _chosen(workload: Workload, there: Sequence[str], splitting: Sequence[str]) -> tuple[str, ...]:
    """The columns that the task is given; those that only say which split a row is of are not, unless it asks for them by name."""
    try:
        return workload.read_columns([name for name in there if name not in splitting])
    except DataError:
        return workload.read_columns(there)


def source_of(run: Run) -> Source:
    """What `data.source`, or `data.train` and its like, names. Raises DataError."""
    data = run.data
    how = Reading(run.root / "datasets", data.columns, run.model.files, skip=data.on_bad_row == "skip")
    return sources.open_together(data.given, how) if data.train else sources.open_source(data.source or "", how)


def _examples_of_rows(run: Run, splitting: Splitting, rows: int) -> dict[str, int | None]:
    """What can be told from numbers of rows alone, before any is read."""
    if splitting.columns or run.data.splits.stratify:
        return dict.fromkeys(SPLITS)
    found = {}
    for number, split in enumerate(SPLITS):
        with naming(f"{run.data.name}, {split} split"):
            found[split] = count_examples(run.model, len(splitting.rows_of(number, 0, rows, {})), training=split == "train")
    return found


def _check_batch(run: Run, examples: int | None) -> None:
    if examples is not None and run.train.batch > examples:
        raise RecipeError(f"train.batch={run.train.batch} is larger than the {examples:,} training examples of {run.data.name}")


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put where it was before the sentence of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}", error.row) from None


def _fit(selection: Selection, pieces: Sequence[Piece]) -> tuple[Encoding, Arrays]:
    """The encoding, learnt from the training rows, and a few of these as they are."""
    sample: list[Arrays] = []
    places: Callable[[int], str] = str
    bad: list[str] = []
    unread: list[DataError] = []
    wanted = selection.workload.context + selection.workload.sample_rows

    def readable() -> Iterator[tuple[Batch, np.ndarray, Arrays]]:
        try:
            yield from selection.training(pieces)
        except DataError as error:
            unread.append(error)
            raise

    def training() -> Iterator[Arrays]:
        nonlocal places
        for batch, rows, raw in readable():
            places = functools.partial(_place_of, batch, rows)
            bad.extend(f"{batch.place(row)}: {reason}" for row, reason in batch.bad.items() if len(bad) < _TOLD)
            if len(rows):
                if (lacking := wanted - sum(len(next(iter(part.values()))) for part in sample)) > 0:
                    sample.append({name: column[:lacking].copy() for name, column in raw.items()})
                yield raw

    try:
        return selection.workload.fit(training()), joined(sample)
    except DataError as error:
        if unread:  # which names its file already
            raise
        where = selection.source.label if error.row is None else places(error.row)
        left = "".join(f"\nleft out: {example}" for example in bad[:_TOLD])
        raise DataError(f"{where}: {error}{left}") from None


def _place_of(batch: Batch, rows: np.ndarray, row: int) -> str:
    return batch.place(int(rows[row]))


def _checked(run: Run, plan: Plan, told: Sequence[dict[str, Any]]) -> Summary:
    """The sum of what pieces told. Raises DataError if too many rows are bad, a split has none, or the source changed meanwhile."""
    skipped = plan.source.skipped()
    unread = Summary(read=skipped.count, skipped=skipped.count, examples=skipped.examples)
    summary = sum((Summary.model_validate(one["summary"]) for one in told), unread)
    check_bad(run, summary)
    if empty := [split for split in SPLITS if not summary.splits.get(split)]:
        raise DataError(f"{run.data.name}: the {empty[0]} split has no rows; give it a larger share, or more data")
    if changed := [name for name, content in plan.source.identity().items() if plan.identity.get(name) != content]:
        raise DataError(f"{changed[0]}: changed while {run.data.name} was being read; give the command again")
    assert summary.closes, summary
    return summary


def check_bad(run: Run, summary: Summary) -> None:
    if summary.skipped > run.data.max_bad_fraction * summary.read:
        examples = "\n".join(summary.examples)
        raise DataError(
            f"{run.data.name}: {summary.skipped:,} of {summary.read:,} rows cannot be used, more than "
            f"data.max_bad_fraction={run.data.max_bad_fraction:g} allows; the first of them:\n{examples}"
        )


def code_version(workload: type[Workload]) -> str:
    """Hash of the code that decides what is in a dataset: the task and what it imports, the reading, the splitting, the writing."""
    task = {file for method in (workload.fit, workload.encode) for file in imported(Path(inspect.getfile(method)), nested=False)}
    return code_sha256({*task, *Path(sources.__file__).parent.rglob("*.py"), Path(__file__)})
