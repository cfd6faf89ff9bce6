"""Tables (CSV, TSV, Parquet) and plain text, read by pyarrow. A file is parsed once a process and kept while it stays the same."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.integrity import sha256
from workloads.base import Arrays, DataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A CSV, TSV or Parquet file; columns as its header names them."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.stem

    def identity(self) -> dict[str, str]:
        return {self.path.name: sha256(self.path)}

    def columns(self) -> tuple[str, ...]:
        return tuple(self._table().column_names)

    def rows(self) -> int:
        return self._table().num_rows

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Arrays:
        part = self._table().slice(start, stop - start)
        return {name: part[name].to_numpy() for name in columns}

    def _table(self) -> pa.Table:
        stat = self.path.stat()
        return _parsed(self.path, stat.st_mtime_ns, stat.st_size)


@dataclass(frozen=True)
class Text:
    """A plain UTF-8 text: a row a line, its line end included; column `text`."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.stem

    def identity(self) -> dict[str, str]:
        return {self.path.name: sha256(self.path)}

    def columns(self) -> tuple[str, ...]:
        return ("text",)

    def rows(self) -> int:
        return len(self._lines())

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Arrays:
        return {name: np.array(self._lines()[start:stop], dtype=object) for name in columns}

    def _lines(self) -> list[str]:
        stat = self.path.stat()
        return _split(self.path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _parsed(path: Path, modified: int, size: int) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
        else:
            parsing = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
            table = pa.csv.read_csv(path, parse_options=parsing)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as a table: {str(error).splitlines()[0]}") from None
    if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
        raise DataError(f"{path.name}: has the column {min(twice)!r} more than once")
    return table.cast(pa.schema([_plain(field) for field in table.schema]))


def _plain(field: pa.Field) -> pa.Field:
    """Booleans and decimals as plain numbers: with gaps they would come as Python objects."""
    import pyarrow as pa

    if pa.types.is_boolean(field.type):
        return field.with_type(pa.int8())
    return field.with_type(pa.float64()) if pa.types.is_decimal(field.type) else field


@functools.lru_cache(maxsize=2)
def _split(path: Path, modified: int, size: int) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # universal newlines would change what is trained on
            return list(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8 at byte {error.start:,}") from None
