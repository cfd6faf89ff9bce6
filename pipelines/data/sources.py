"""Raw rows: what a source holds and how a range of them is read. Each source is frozen and picklable; any process can read any range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.data.embedded import EMBEDDED
from pipelines.data.idx import Idx
from pipelines.data.tables import Table, Text
from workloads.base import Arrays, DataError

_TABLES = (".csv", ".tsv", ".parquet")
_TEXTS = (".txt", ".md")
_NO_NAMES: Mapping[str, str] = {}


class Source(Protocol):
    @property
    def label(self) -> str:
        """A short name, for run names and people."""
        ...

    def identity(self) -> dict[str, str]:
        """What the content is: file -> sha256, or package -> version. Equal identities mean equal rows."""
        ...

    def columns(self) -> tuple[str, ...]:
        """The names of its columns. Raises DataError."""
        ...

    def rows(self) -> int:
        """How many rows there are. Raises DataError."""
        ...

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Arrays:
        """Rows [start, stop) of `columns`: numbers, or Python strings with None where one is missing. Raises DataError."""
        ...


@dataclass(frozen=True)
class Renamed:
    """A source under other column names: `names` maps those that the task asks for to the source's own."""

    source: Source
    names: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        return self.source.label

    def identity(self) -> dict[str, str]:
        return self.source.identity() | {f"column {ours}": theirs for ours, theirs in self.names}

    def columns(self) -> tuple[str, ...]:
        ours = {theirs: ours for ours, theirs in self.names}
        there = self.source.columns()
        if missing := [theirs for theirs in ours if theirs not in there]:
            raise DataError(f"data.columns: there is no column {missing[0]!r}; columns: {', '.join(there)}")
        return tuple(ours.get(name, name) for name in there)

    def rows(self) -> int:
        return self.source.rows()

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Arrays:
        theirs = dict(self.names)
        raw = self.source.read(start, stop, [theirs.get(name, name) for name in columns])
        return {name: raw[theirs.get(name, name)] for name in columns}


def open_source(text: str, names: Mapping[str, str] = _NO_NAMES) -> Source:
    """What `data.source` names, its columns renamed as `names` (ours -> theirs) says. Raises DataError."""
    source = _open(text)
    return Renamed(source, tuple(sorted(names.items()))) if names else source


def _open(text: str) -> Source:
    if text in EMBEDDED:
        return EMBEDDED[text]
    if "://" in text:
        raise DataError(f"{text}: only local files and embedded data ({', '.join(EMBEDDED)}) are read yet")
    try:
        path = Path(text).expanduser().absolute()  # not resolve(): labels lie beside the name given, not beside what a link points to
        there = path.is_file()
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{text[:100]!r} can be no path: {error}") from None
    if not there:
        raise DataError(f"{text}: no such file, nor an embedded data set ({', '.join(EMBEDDED)})")
    if path.suffix in _TABLES:
        return Table(path)
    return Text(path) if path.suffix in _TEXTS else Idx.beside(path)
