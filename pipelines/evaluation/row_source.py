"""What is read of the data that a model is asked about: the columns that it needs, under the task's names, and all that are kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data import sources
from pipelines.data.encode import Piece, cut
from pipelines.data.readers.image_folder import ImageFolder
from pipelines.data.readers.path_columns import Opened
from pipelines.data.source import Files, Source
from pipelines.data.sources import Reading
from pipelines.errors import shown
from pipelines.evaluation.models import Model
from workloads.base import Arrays, DataError

_CUTS = 8
"""Into so many pieces are rows cut that can only be entered at their start: each of them reads what lies before its own."""


@dataclass(frozen=True)
class Asked:
    """Rows of a source; `columns` are what the model needs, `kept` maps each column that is kept to its own name in the source."""

    source: Source
    columns: tuple[str, ...]
    kept: Mapping[str, str]

    def read(self, start: int, stop: int) -> Iterator[tuple[Arrays, Arrays]]:
        """Rows [start, stop) in batches: what the model is given of them, and what is kept. Raises DataError."""
        wanted = tuple(dict.fromkeys([*self.columns, *self.kept]))
        if isinstance(self.source, Opened):  # a file's name is kept, and not its content
            for raw in self.source.source.read(start, stop, wanted):
                for part, contents in self.source.opened(raw, self.columns):
                    yield self._divided(part, contents)
        else:
            for raw in self.source.read(start, stop, wanted):
                yield self._divided(raw, {})

    def pieces(self, piece_rows: int) -> list[Piece]:
        """Pieces of about so many rows, beginning where reading can begin or, where that is too seldom, between."""
        found: list[tuple[int, int]] = []
        for _, start, stop in cut(self.source, self.source.rows(), piece_rows):
            parts = min(max(round((stop - start) / piece_rows), 1), _CUTS)
            edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
            found += itertools.pairwise(edges)
        return [Piece(number, start, stop) for number, (start, stop) in enumerate(found)]

    def _divided(self, raw: Arrays, contents: Arrays) -> tuple[Arrays, Arrays]:
        return {name: contents.get(name, raw[name]) for name in self.columns}, {own: raw[name] for name, own in self.kept.items()}


def open_input(model: Model, text: str) -> Asked:
    """What `text` names (a path, a glob, a URI …), to be asked of the model. Raises DataError, where it has no rows or lacks a column."""
    run = model.run
    scratch, skip = run.root / "datasets", run.data.on_bad_row == "skip"
    plain = sources.open_source(text, Reading(scratch, skip=skip, labelled=False))
    there = plain.columns()
    if not plain.rows():
        raise DataError(f"{shown(text)}: has no rows")
    renamed = {theirs: ours for ours, theirs in run.data.columns.items() if theirs in there and ours not in there}
    try:
        columns = model.serving.columns([renamed.get(name, name) for name in there])
    except DataError as error:
        raise DataError(f"{shown(text)}: is not what {model.called} can be asked, a model of {model.workload.task}: {error}") from None
    if plain.rows() <= model.serving.lookback:
        raise DataError(f"{shown(text)}: {plain.rows():,} rows are fewer than a window of {model.serving.lookback + 1:,}")
    names = {ours: theirs for theirs, ours in renamed.items() if ours in columns}
    source = sources.open_source(text, Reading(scratch, names, model.workload.files, skip=skip, labelled=False))
    kept = {name: names.get(name, name) for name in source.columns() if name != "image" or not _of_pictures(plain)}
    return Asked(source, columns, kept)


def free_name(name: str, taken: Sequence[str], prefix: str) -> str:
    """`name`, with the prefix before it if it is taken (and again, until it is not)."""
    while name in taken:
        name = f"{prefix}{name}"
    return name


def rows_of(batch: Arrays) -> np.ndarray:
    """The numbers of a batch's rows, counted from its first."""
    return np.arange(len(next(iter(batch.values()))))


def _of_pictures(source: Source) -> bool:
    """Whether the rows are files of pictures: then their paths are kept, and not their content."""
    return isinstance(source, Files) and isinstance(source.readers[0], ImageFolder)
