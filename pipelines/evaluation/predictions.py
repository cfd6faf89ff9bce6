"""Predict rows of any source: read the columns that the model needs and all that are kept, encode as training does, predict, write a part.

Column types are taken from the first rows before any part is written, so that all parts have the same ones.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data import sources
from pipelines.data.encode import Piece, cut, tried
from pipelines.data.files import shown
from pipelines.data.readers.image_files import ImageFolder, PathColumns
from pipelines.data.readers.planned import Files
from pipelines.data.source import Source
from pipelines.data.sources import ReadOptions
from pipelines.evaluation import output
from pipelines.evaluation.models import Model
from pipelines.evaluation.output import Output
from workloads import inference
from workloads.base import Arrays, DataError

_CPU_BYTES, _GPU_BYTES = 128 << 10, 8 << 20
"""Bytes of the rows of a batch: the activations of more of them leave a CPU's cache (the guide's CNN lost a quarter)."""
_LEAST_ROWS, _MOST_ROWS = 16, 1024
_TRIED_ROWS, _TRIED_PLACES = 64, 16
_EXAMPLES = 10
_CUTS = 8
"""Rows that can only be entered at their start are cut into so many pieces: each of them reads what lies before its own."""


@dataclass(frozen=True)
class Predictor:
    """A model and the rows of a source that it predicts: plain picklable values."""

    model: Model
    source: Source
    columns: tuple[str, ...]
    """Those that the model needs."""
    kept: Mapping[str, str]
    """Columns that are kept -> their names in the source."""
    threads: int
    """Those that torch computes with."""

    @property
    def skip(self) -> bool:
        return self.model.run.data.on_bad_row == "skip"

    def read(self, start: int, stop: int) -> Iterator[tuple[Arrays, Arrays]]:
        """Rows [start, stop) in batches: the model's columns, and those that are kept. Raises DataError."""
        wanted = tuple(dict.fromkeys([*self.columns, *self.kept]))
        if isinstance(source := self.source, PathColumns):  # a file's name is kept, and not its content
            read = (opened for raw in source.source.read(start, stop, wanted) for opened in source.opened(raw, self.columns))
        else:
            read = ((raw, raw) for raw in source.read(start, stop, wanted))
        for raw, contents in read:
            yield {name: contents.get(name, raw[name]) for name in self.columns}, {own: raw[name] for name, own in self.kept.items()}

    def pieces(self, piece_rows: int) -> list[Piece]:
        """Pieces of about so many rows, beginning where reading can begin or, where that is too seldom, between."""
        ranges: list[tuple[int, int]] = []
        for _, start, stop in cut(self.source, self.source.rows(), piece_rows):
            parts = min(max(round((stop - start) / piece_rows), 1), _CUTS)
            ranges += itertools.pairwise(start + (stop - start) * part // parts for part in range(parts + 1))
        return [Piece(number, start, stop) for number, (start, stop) in enumerate(ranges)]

    def predict(self, start: int, stop: int, bad: dict[int, str]) -> Iterator[tuple[np.ndarray, Arrays, dict[str, list[Any]]]]:
        """Rows [start, stop) in order: their numbers in the source, the columns that are kept of them, and the predictions, by column.

        Rows that cannot be used are put into `bad` (row -> reason) where they are skipped, else they are a DataError. Where rows follow one
        another, those before the first whole window have None for a prediction.
        """
        serving, source = self.model.serving, self.source
        at = max(0, start - serving.lookback)
        before: dict[str, np.ndarray] = {}
        for raw, kept in self.read(at, stop):
            count = len(next(iter(raw.values())))
            failed: dict[int, str] | None = {} if self.skip else None
            for good, encoded in tried(
                lambda raw: serving.encode({name: raw[name] for name in self.columns}),
                np.arange(count),
                {**kept, **raw},
                label=source.label,
                place=_places_from(source, at),
                bad=failed,
            ):
                encoded, before = _with_lookback(before, encoded, serving.lookback)
                predictions = self._predictions(serving.windows(encoded), len(good))
                fresh = good + at >= start
                last = {name: values[len(good) - int(fresh.sum()) :] for name, values in predictions.items()}
                yield (good + at)[fresh], {name: column[good[fresh]] for name, column in kept.items()}, last
            bad.update({row + at: reason for row, reason in (failed or {}).items()})
            at += count

    def _predictions(self, examples: dict[str, np.ndarray], rows: int) -> dict[str, list[Any]]:
        """Readable columns of `rows` rows, of which the last ones have an example each, and those before them have none."""
        import torch

        torch.set_num_threads(self.threads)
        network, device = self.model.loaded()
        row_bytes = sum(column.nbytes for column in examples.values()) / max(len(next(iter(examples.values()))), 1)
        batch_bytes = _CPU_BYTES if device == "cpu" else _GPU_BYTES
        batch_rows = int(min(max(batch_bytes / max(row_bytes, 1), _LEAST_ROWS), _MOST_ROWS))
        serving = self.model.serving
        outputs = inference.outputs(self.model.workload, serving.respond, network, examples, batch_rows=batch_rows)
        return {name: [None] * (rows - len(values)) + values for name, values in serving.decode(outputs).items()}


def predictor_of(model: Model, text: str) -> Predictor:
    """Open what `text` names (a path, a glob, a URI …) for the model. Raises DataError where it has no rows or lacks a column."""
    run, serving = model.run, model.serving
    scratch, skip = run.root / "datasets", run.data.on_bad_row == "skip"
    plain = sources.open_source(text, ReadOptions(scratch, skip=skip, labelled=False))
    available = plain.columns()
    if not plain.rows():
        raise DataError(f"{shown(text)}: has no rows")
    renamed = {theirs: ours for ours, theirs in run.data.columns.items() if theirs in available and ours not in available}
    try:
        columns = serving.columns([renamed.get(name, name) for name in available])
    except DataError as error:
        raise DataError(f"{shown(text)}: does not fit {model.called}, a model of {model.workload.task}: {error}") from None
    if plain.rows() <= serving.lookback:
        raise DataError(f"{shown(text)}: {plain.rows():,} rows are fewer than a window of {serving.lookback + 1:,}")
    names = {ours: theirs for theirs, ours in renamed.items() if ours in columns}
    source = sources.open_source(text, ReadOptions(scratch, names, model.workload.files, skip=skip, labelled=False))
    pictures = isinstance(plain, Files) and isinstance(plain.readers[0], ImageFolder)  # of pictures the paths are kept, not the content
    kept = {name: names.get(name, name) for name in source.columns() if name != "image" or not pictures}
    return Predictor(model, source, columns, kept, run.scale.threads or 1)


@dataclass(frozen=True)
class Job:
    """Predicts a piece of rows and writes its part: plain picklable values for each process that works on pieces."""

    predictor: Predictor
    output: Output
    names: Mapping[str, str]
    """Columns of predictions, and the names that they are written under."""
    number: str
    """The name under which a row's number is written."""
    schema: pa.Schema

    def __call__(self, piece: Piece | Sequence[int]) -> dict[str, Any]:
        """Predict the rows of a piece and put them in place; the card of what the part holds, as JSON values. Raises DataError."""
        piece = Piece(*piece)
        card: dict[str, Any] = {"number": piece.number}
        return self.output.put(piece, self.schema, self._batches(piece, card), card)

    def _batches(self, piece: Piece, card: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        source, count, bad = self.predictor.source, 0, dict[int, str]()
        for rows, kept, predictions in self.predictor.predict(piece.start, piece.stop, bad):
            count += len(rows)
            named = {self.names[name]: values for name, values in predictions.items()}
            yield output.batch_of({**kept, self.number: rows, **named}, self.schema)
        if count + len(bad) != piece.stop - piece.start:
            raise DataError(f"{source.label}: has other rows than before; did it change?")
        card.update(rows=count, skipped=len(bad), examples=_examples(source, bad))


def job_of(predictor: Predictor, target: Output, say: Callable[[str], None]) -> tuple[Job, float]:
    """The job, and the rows that one thread predicts in a second. Raises DataError if the first rows cannot be predicted."""
    predictions = _first_predictions(predictor)
    kinds = _kinds(predictor)
    kept = tuple(name for name, kind in kinds.items() if output.holds(target.form, kind))
    if left := [name for name in kinds if name not in kept]:
        say(f"{target.name}: {target.form} cannot hold column {', '.join(left)}; it is left out (Parquet keeps it)")
    number = _free_name("row", kept, "input_")
    names = {name: _free_name(name, [*kept, number], "predicted_") for name in predictions}
    predicted = [(new, output.kind_of([np.fromiter(predictions[name], object)])) for name, new in names.items()]
    schema = pa.schema([(number, pa.int64()), *((name, kinds[name]) for name in kept), *predicted])
    lookback, rows = predictor.model.serving.lookback, predictor.source.rows()
    began = time.perf_counter()  # of rows that are predicted once more, now that all is loaded
    for _ in predictor.predict(lookback, min(lookback + _TRIED_ROWS, rows), {}):
        pass
    return Job(predictor, target, names, number, schema), min(_TRIED_ROWS, rows - lookback) / (time.perf_counter() - began)


def _first_predictions(predictor: Predictor) -> dict[str, list[Any]]:
    """The predictions of the first rows that can be used."""
    source, bad = predictor.source, dict[int, str]()
    start, stop = 0, min(_TRIED_ROWS + predictor.model.serving.lookback, source.rows())
    while start < stop:
        for rows, _, predictions in predictor.predict(start, stop, bad):
            if len(rows):
                return predictions
        start, stop = stop, min(2 * stop, source.rows())
    raise DataError("\n".join([f"{source.label}: no row can be used; the first of them:", *_examples(source, bad)]))


def _kinds(predictor: Predictor) -> dict[str, pa.DataType]:
    """The type of each kept column, taken from a few rows of some places all over the source."""
    starts = list(predictor.source.starts())
    columns: dict[str, list[np.ndarray]] = {name: [] for name in predictor.kept.values()}
    for start in starts[:: max(1, len(starts) // _TRIED_PLACES)]:
        for _, kept in predictor.read(start, min(start + _TRIED_ROWS, predictor.source.rows())):
            for name, column in kept.items():
                if column.dtype == object:  # a value that could not be read counts as missing
                    column = np.fromiter([None if isinstance(value, DataError) else value for value in column], object)
                columns[name].append(column)
    return {name: output.kind_of(batches) for name, batches in columns.items()}


def _with_lookback(before: dict[str, np.ndarray], encoded: dict[str, np.ndarray], lookback: int) -> tuple[dict[str, np.ndarray], ...]:
    """The rows with those that they look back on before them, and the last of these, for the rows that come next."""
    if not lookback:
        return encoded, before
    joined = {name: np.concatenate([before[name], column]) if before else column for name, column in encoded.items()}
    return joined, {name: column[-lookback:] for name, column in joined.items()}


def _places_from(source: Source, start: int) -> Callable[[int], str]:
    return lambda row: source.place(row + start)


def _examples(source: Source, bad: Mapping[int, str]) -> list[str]:
    return [f"{source.place(row)}: {reason}" for row, reason in sorted(bad.items())[:_EXAMPLES]]


def _free_name(name: str, taken: Sequence[str], prefix: str) -> str:
    """`name`, with the prefix before it if it is taken (and again, until it is not)."""
    while name in taken:
        name = f"{prefix}{name}"
    return name
