"""Data that a model has not seen, encoded by what the model learnt from its own: nothing is fitted, and every row is used."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass

from pipelines.data import dataset as prepared
from pipelines.data import dividing, joining
from pipelines.data import preparation as preparing
from pipelines.data.dataset import MANIFEST, Dataset, Shard
from pipelines.data.encode import Encoder, Piece, Selection, cut
from pipelines.data.preparation import Each
from pipelines.data.source import Source
from pipelines.data.splits import Consecutive, Splitting
from pipelines.data.stats import Summary
from pipelines.data.store import store_of
from pipelines.evaluation.models import Model
from pipelines.run_settings import Run
from workloads.base import DataError

WHOLE = "test"
"""The split that holds all rows of a source that is not divided."""
_PIECE_ROWS, _MOST_PIECES = 8192, 512


@dataclass(frozen=True)
class Rows:
    """A source, and which of its rows are meant: all, which then count as `split`, or a split that is `cut` from it."""

    selection: Selection
    pieces: list[Piece]
    split: str
    cut: bool


def rows_of(model: Model, *, split: str | None) -> Rows:
    """The rows of the data that the model's settings name: of one of their splits, or all. Raises DataError, naming the model's task."""
    run, workload = model.run, model.workload
    source = preparing.source_of(run)
    with preparing.naming(run.data.name):
        rows = source.rows()
        if not rows:
            raise DataError("has no rows")
        try:
            columns = workload.read_columns(source.columns(), model.encoding)
        except DataError as error:
            raise DataError(f"{error}; {model.called} is a model of {workload.task}") from None
    splitting: Splitting = Consecutive((0, 0, rows))
    if split:
        splitting = dividing.settled(run, dividing.splitting_of(run, source), source, columns)
    selection = Selection(source, columns, splitting, workload, skip=run.data.on_bad_row == "skip")
    return Rows(selection, _pieces(source, rows), split or WHOLE, cut=split is not None)


def encoded(model: Model, rows: Rows, each: Each) -> Dataset:
    """The rows as a dataset of one split, made now unless it is there already. Raises DataError."""
    run, store = model.run, store_of(model.run)
    identity = rows.selection.source.identity()
    fingerprint = _fingerprint(model, rows, identity)
    if not store.has(fingerprint, MANIFEST):
        work = f".parts.{uuid.uuid4().hex[:8]}"
        try:
            with store.writing(fingerprint, last=MANIFEST) as folder:
                told = each(Encoder(rows.selection, model.encoding, store, work, (rows.split,)), rows.pieces)
                skipped = rows.selection.source.skipped()
                unread = Summary(read=skipped.count, skipped=skipped.count, examples=skipped.examples)
                summary = sum((Summary.model_validate(one["summary"]) for one in told), unread)
                _check(run, rows, summary)
                joined = each(joining.Joiner(store, work, folder), joining.shared_out(told))
                prepared.finish(
                    store,
                    folder,
                    fingerprint=fingerprint,
                    source=identity,
                    shards=[Shard.model_validate(one["shard"]) for one in joined],
                    columns=joined[0]["columns"],
                    encoding=model.encoding.model_dump(mode="json"),
                    summary=summary,
                    sample={},
                )
        finally:
            store.remove(work)
    dataset = prepared.proven(store, fingerprint)
    _check(run, rows, dataset.manifest.summary)
    return dataset


def _check(run: Run, rows: Rows, summary: Summary) -> None:
    preparing.check_bad(run, summary)
    if not summary.splits.get(rows.split):
        raise DataError(f"{run.data.name}: has no rows" + (f" in its {rows.split} split" if rows.cut else ""))


def _pieces(source: Source, rows: int) -> list[Piece]:
    return cut(source, rows, max(_PIECE_ROWS, rows // _MOST_PIECES))


def _fingerprint(model: Model, rows: Rows, identity: dict[str, str]) -> str:
    data = model.run.data
    made_of = {
        "source": identity,
        "columns": rows.selection.columns,
        "cut": [rows.split, data.splits.model_dump(mode="json"), data.seed, data.given] if rows.cut else None,
        "skip": data.on_bad_row == "skip",
        "task": model.workload.task_settings(),
        "encoding": model.encoding.model_dump(mode="json"),
        "code": preparing.code_version(type(model.workload)),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
