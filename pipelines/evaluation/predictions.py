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
from pipelines.data.readers.image_files import ImageFolder, PathColumns
from pipelines.data.source import Files, Source
from pipelines.data.sources import ReadOptions
from pipelines.errors import shown
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
class Input:
    """Rows of a source to predict; `columns` are what the model needs, `kept` maps each column that is kept to its name in the source."""

    source: Source
    columns: tuple[str, ...]
    kept: Mapping[str, str]

    def read(self, start: int, stop: int) -> Iterator[tuple[Arrays, Arrays]]:
        """Rows [start, stop) in batches: the model's columns, and those that are kept. Raises DataError."""
        wanted = tuple(dict.fromkeys([*self.columns, *self.kept]))
        if isinstance(self.source, PathColumns):  # a file's name is kept, and not its content
            for raw in self.source.source.read(start, stop, wanted):
                for part, contents in self.source.opened(raw, self.columns):
                    yield self._parted(part, contents)
        else:
            for raw in self.source.read(start, stop, wanted):
                yield self._parted(raw, {})

    def pieces(self, piece_rows: int) -> list[Piece]:
        """Pieces of about so many rows, beginning where reading can begin or, where that is too seldom, between."""
        ranges: list[tuple[int, int]] = []
        for _, start, stop in cut(self.source, self.source.rows(), piece_rows):
            parts = min(max(round((stop - start) / piece_rows), 1), _CUTS)
            ranges += itertools.pairwise(start + (stop - start) * part // parts for part in range(parts + 1))
        return [Piece(number, start, stop) for number, (start, stop) in enumerate(ranges)]

    def _parted(self, raw: Arrays, contents: Arrays) -> tuple[Arrays, Arrays]:
        return {name: contents.get(name, raw[name]) for name in self.columns}, {own: raw[name] for name, own in self.kept.items()}


def open_input(model: Model, text: str) -> Input:
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
        raise DataError(f"{shown(text)}: is not what {model.called} can be asked, a model of {model.workload.task}: {error}") from None
    if plain.rows() <= serving.lookback:
        raise DataError(f"{shown(text)}: {plain.rows():,} rows are fewer than a window of {serving.lookback + 1:,}")
    names = {ours: theirs for theirs, ours in renamed.items() if ours in columns}
    source = sources.open_source(text, ReadOptions(scratch, names, model.workload.files, skip=skip, labelled=False))
    pictures = isinstance(plain, Files) and isinstance(plain.readers[0], ImageFolder)  # of pictures the paths are kept, not the content
    return Input(source, columns, {name: names.get(name, name) for name in source.columns() if name != "image" or not pictures})


@dataclass(frozen=True)
class Predicted:
    """Consecutive rows: their numbers in the source, the columns that are kept of them, and the predictions, by column."""

    rows: np.ndarray
    kept: Arrays
    predictions: dict[str, list[Any]]


@dataclass(frozen=True)
class Predictor:
    """A model and the rows that it predicts; plain picklable values. `threads`: those that torch computes with."""

    model: Model
    input: Input
    threads: int

    def predict(self, start: int, stop: int, bad: dict[int, str] | None) -> Iterator[Predicted]:
        """Rows [start, stop) in order. Those that cannot be used are put into `bad` (row -> reason); where it is None they are a DataError.

        Where rows follow one another, those before the first whole window have None for a prediction.
        """
        serving, source = self.model.serving, self.input.source
        at = max(0, start - serving.lookback)
        before: dict[str, np.ndarray] = {}
        for raw, kept in self.input.read(at, stop):
            count = len(next(iter(raw.values())))
            failed: dict[int, str] | None = None if bad is None else {}
            parts = tried(self._encode, np.arange(count), {**kept, **raw}, label=source.label, place=_places_from(source, at), bad=failed)
            for good, encoded in parts:
                encoded, before = _with_lookback(before, encoded, serving.lookback)
                predictions = self._predictions(serving.windows(encoded), len(good))
                fresh = good + at >= start
                yield Predicted(
                    (good + at)[fresh],
                    {name: column[good[fresh]] for name, column in kept.items()},
                    {name: values[len(good) - int(fresh.sum()) :] for name, values in predictions.items()},
                )
            if bad is not None and failed:
                bad.update({row + at: reason for row, reason in failed.items()})
            at += count

    def _encode(self, raw: Arrays) -> dict[str, np.ndarray]:
        return self.model.serving.encode({name: raw[name] for name in self.input.columns})

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


@dataclass(frozen=True)
class Job:
    """Predicts a piece of rows and writes its part: plain picklable values for each process that works on pieces."""

    predictor: Predictor
    output: Output
    names: Mapping[str, str]
    """Columns of predictions, and the names that they are written under."""
    kept: tuple[str, ...]
    number: str
    """The name under which a row's number is written."""
    schema: pa.Schema
    skip: bool

    def __call__(self, piece: Piece | Sequence[int]) -> dict[str, Any]:
        """Predict the rows of a piece and put them in place; the card of what the part holds, as JSON values. Raises DataError."""
        piece = Piece(*piece)
        card: dict[str, Any] = {"number": piece.number}
        return self.output.put(piece, self.schema, self._batches(piece, card), card)

    def _batches(self, piece: Piece, card: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        source, rows, bad = self.predictor.input.source, 0, dict[int, str]()
        for part in self.predictor.predict(piece.start, piece.stop, bad if self.skip else None):
            rows += len(part.rows)
            kept = {name: part.kept[name] for name in self.kept}
            predictions = {self.names[name]: values for name, values in part.predictions.items()}
            yield output.batch_of({self.number: part.rows, **kept, **predictions}, self.schema)
        if rows + len(bad) != piece.stop - piece.start:
            raise DataError(f"{source.label}: has other rows than when it was looked at; did it change?")
        card.update(rows=rows, skipped=len(bad), examples=_examples(source, bad))


def job_of(model: Model, rows: Input, target: Output, say: Callable[[str], None]) -> tuple[Job, float]:
    """The job, and the rows that one thread predicts in a second. Raises DataError if the first rows cannot be predicted."""
    skip = model.run.data.on_bad_row == "skip"
    predictor = Predictor(model, rows, model.run.scale.threads or 1)
    predictions = _first_predictions(predictor, skip)
    kinds = _kinds(rows)
    kept = tuple(name for name, kind in kinds.items() if output.holds(target.form, kind))
    if left := [name for name in kinds if name not in kept]:
        say(f"{target.name}: {target.form} cannot hold column {', '.join(left)}; it is left out (Parquet keeps it)")
    number = _free_name("row", kept, "input_")
    names = {name: _free_name(name, [*kept, number], "predicted_") for name in predictions}
    predicted = [(new, output.kind_of([_objects(predictions[name])])) for name, new in names.items()]
    schema = pa.schema([(number, pa.int64()), *((name, kinds[name]) for name in kept), *predicted])
    return Job(predictor, target, names, kept, number, schema, skip), _rate(predictor, skip)


def _first_predictions(predictor: Predictor, skip: bool) -> dict[str, list[Any]]:
    """The predictions of the first rows that can be used."""
    source = predictor.input.source
    start, stop, bad = 0, min(_TRIED_ROWS + predictor.model.serving.lookback, source.rows()), dict[int, str]()
    while start < stop:
        for part in predictor.predict(start, stop, bad if skip else None):
            if len(part.rows):
                return part.predictions
        start, stop = stop, min(2 * stop, source.rows())
    raise DataError("\n".join([f"{source.label}: no row can be used; the first of them:", *_examples(source, bad)]))


def _rate(predictor: Predictor, skip: bool) -> float:
    """Rows a second, now that all is loaded."""
    lookback, rows = predictor.model.serving.lookback, predictor.input.source.rows()
    began = time.perf_counter()
    for _ in predictor.predict(lookback, min(lookback + _TRIED_ROWS, rows), {} if skip else None):
        pass
    return min(_TRIED_ROWS, rows - lookback) / (time.perf_counter() - began)


def _kinds(rows: Input) -> dict[str, pa.DataType]:
    """The type of each kept column, taken from a few rows of some places all over the source."""
    starts = list(rows.source.starts())
    columns: dict[str, list[np.ndarray]] = {name: [] for name in rows.kept.values()}
    for start in starts[:: max(1, len(starts) // _TRIED_PLACES)]:
        for _, kept in rows.read(start, min(start + _TRIED_ROWS, rows.source.rows())):
            for name, column in kept.items():
                columns[name].append(_readable(column))
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


def _readable(column: np.ndarray) -> np.ndarray:
    """A column without the values that could not be read."""
    return _objects([None if isinstance(value, DataError) else value for value in column]) if column.dtype == object else column


def _objects(values: Sequence[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column
