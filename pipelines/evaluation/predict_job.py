"""The job of answering: a piece of rows in, a part of the output written; and the types of its columns, told from the first rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.encode import Piece
from pipelines.evaluation import formats
from pipelines.evaluation.models import Model
from pipelines.evaluation.row_answers import Answered, Answerer
from pipelines.evaluation.row_source import Asked, free_name
from pipelines.evaluation.writer import Output
from workloads.base import DataError

TOLD = 10
_TRIED_ROWS = 64
_LOOKED_AT = 16


@dataclass(frozen=True)
class Job:
    """What each process that works on pieces is told: plain picklable values."""

    answerer: Answerer
    output: Output
    names: Mapping[str, str]
    """Columns of answers, and the names that they are written under."""
    kept: tuple[str, ...]
    number: str
    """The name under which a row's number is written."""
    schema: pa.Schema
    skip: bool

    def __call__(self, piece: Piece | Sequence[int]) -> dict[str, Any]:
        """Answer the rows of a piece and put them in place; the card of what it holds, as JSON values. Raises DataError."""
        piece = Piece(*piece)
        card: dict[str, Any] = {"number": piece.number}
        return self.output.put(piece, self.schema, self._batches(piece, card), card)

    def _batches(self, piece: Piece, card: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        source, rows, bad = self.answerer.asked.source, 0, dict[int, str]()
        for answered in self.answerer.answers(piece.start, piece.stop, bad if self.skip else None):
            rows += len(answered.rows)
            yield self._batch(answered)
        if rows + len(bad) != piece.stop - piece.start:
            raise DataError(f"{source.label}: has other rows than when it was looked at; did it change?")
        told = [f"{source.place(row)}: {reason}" for row, reason in sorted(bad.items())[:TOLD]]
        card.update(rows=rows, skipped=len(bad), examples=told)

    def _batch(self, answered: Answered) -> pa.RecordBatch:
        kept = {name: answered.kept[name] for name in self.kept}
        answers = {self.names[name]: values for name, values in answered.answers.items()}
        return formats.batch_of({self.number: answered.rows, **kept, **answers}, self.schema)


def job_of(model: Model, asked: Asked, output: Output, say: Callable[[str], None]) -> tuple[Job, float]:
    """The job, and how many rows one thread answers in a second. Raises DataError if the first rows cannot be answered."""
    skip = model.run.data.on_bad_row == "skip"
    answerer = Answerer(model, asked, model.run.scale.threads or 1)
    answers = _first_answers(answerer, skip)
    kinds = _kinds(asked)
    kept = tuple(name for name, kind in kinds.items() if formats.holds(output.form, kind))
    if left := [name for name in kinds if name not in kept]:
        say(f"{output.name}: {output.form} cannot hold column {', '.join(left)}; it is left out (Parquet keeps it)")
    number = free_name("row", kept, "input_")
    names = {name: free_name(name, [*kept, number], "predicted_") for name in answers}
    told = [(new, formats.kind_of([_objects(answers[name])])) for name, new in names.items()]
    schema = pa.schema([(number, pa.int64()), *((name, kinds[name]) for name in kept), *told])
    return Job(answerer, output, names, kept, number, schema, skip), _rate(answerer, skip)


def _first_answers(answerer: Answerer, skip: bool) -> dict[str, list[Any]]:
    """The answers of the first rows that can be used."""
    source = answerer.asked.source
    start, stop, bad = 0, min(_TRIED_ROWS + answerer.model.serving.lookback, source.rows()), dict[int, str]()
    while start < stop:
        for found in answerer.answers(start, stop, bad if skip else None):
            if len(found.rows):
                return found.answers
        start, stop = stop, min(2 * stop, source.rows())
    told = "".join(f"\n{source.place(row)}: {reason}" for row, reason in sorted(bad.items())[:TOLD])
    raise DataError(f"{source.label}: no row can be used; the first of them:{told}")


def _rate(answerer: Answerer, skip: bool) -> float:
    """Rows a second, now that all is loaded."""
    look, rows = answerer.model.serving.lookback, answerer.asked.source.rows()
    began = time.perf_counter()
    for _ in answerer.answers(look, min(look + _TRIED_ROWS, rows), {} if skip else None):
        pass
    return min(_TRIED_ROWS, rows - look) / (time.perf_counter() - began)


def _kinds(asked: Asked) -> dict[str, pa.DataType]:
    """The type of each kept column, told from a few rows of some places all over the source."""
    starts = list(asked.source.starts())
    looked: dict[str, list[np.ndarray]] = {name: [] for name in asked.kept.values()}
    for start in starts[:: max(1, len(starts) // _LOOKED_AT)]:
        for _, kept in asked.read(start, min(start + _TRIED_ROWS, asked.source.rows())):
            for name, column in kept.items():
                looked[name].append(_readable(column))
    return {name: formats.kind_of(columns) for name, columns in looked.items()}


def _readable(column: np.ndarray) -> np.ndarray:
    """A column without the values that could not be read."""
    return _objects([None if isinstance(value, DataError) else value for value in column]) if column.dtype == object else column


def _objects(values: Sequence[Any]) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found
