"""Output of predictions: a part for each piece of rows, as Parquet, CSV or JSON lines, beside each a sealed card of what it holds; at the
end, where one file was asked for, the parts joined.

A piece is done when its card stands, which is written after its part: a killed command goes on with the pieces that have none, and no row
is there twice. `_job.json` says what the parts are made of: parts of another job are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipelines import sealed
from pipelines.data import files
from pipelines.data.encode import Piece
from pipelines.data.store import Store
from pipelines.errors import RecipeError, StorageError
from pipelines.run_record import RunFolder
from workloads.base import DataError

Format = Literal["parquet", "csv", "jsonl"]
ENDINGS: Mapping[str, Format] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_GROUP_ROWS, _GROUP_BYTES = 8192, 32 << 20
_JOB, _DONE = "_job.json", "_done.json"


@dataclass(frozen=True)
class Output:
    """A folder of parts, or one file, whose parts lie in a hidden folder beside it until it is complete."""

    text: str
    form: Format
    parts: Store
    """The folder of the parts."""
    file: tuple[Store, str] | None
    """The one file: where it lies, and its name."""

    @property
    def name(self) -> str:
        """The output as it may be printed."""
        return files.shown(self.text)

    @contextmanager
    def locked(self) -> Iterator[Path]:
        """Be the only process of this machine that writes it; gives a local folder for logs. Raises StorageError if another does."""
        place = self.parts.cache / f"output-{hashlib.sha256(self.parts.place.encode()).hexdigest()[:16]}"
        folder = place if self.parts.remote else Path(self.parts.place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.name}: cannot be written: {error.strerror or error}") from error
        with RunFolder(folder).locked("predict", wait_seconds=2):
            for name in self.parts.names(""):
                if name.startswith(".work."):  # a killed process left it
                    self.parts.remove(name)
            yield folder

    def begun(self) -> dict[str, Any] | None:
        """The job that its parts belong to, or None where nothing was written. Raises StorageError where something else lies there."""
        if self.parts.has("", _JOB):
            return self._card(_JOB)
        if self.file and self.file[0].has("", self.file[1]):
            raise StorageError(f"{self.name}: exists already and was not written by this command; name another file, or move it away")
        if not self.file and any(not name.startswith(".") for name in self.parts.names("")):
            raise StorageError(f"{self.name}: is not empty, and has no predictions of this command; name another folder")
        return None

    def begin(self, job: dict[str, Any]) -> None:
        self._put(_JOB, job)

    def clear(self) -> None:
        """Remove what this command wrote before; what others wrote stays."""
        if not self.parts.has("", _JOB):
            return
        for name in self.parts.names(""):
            if name in (_JOB, _DONE) or name.startswith(("part-", "_part-")):
                self.parts.remove_file(name)
        if self.file and self.file[0].has("", self.file[1]):
            self.file[0].remove_file(self.file[1])

    def result(self) -> dict[str, Any] | None:
        """The result of the finished command, if its output is still there."""
        complete = self.parts.has("", _DONE) and (self.file is None or self.file[0].has("", self.file[1]))
        return self._card(_DONE) if complete else None

    def cards(self) -> dict[int, dict[str, Any]]:
        """The cards of the pieces that are done, by number."""
        names = [name for name in self.parts.names("") if name.startswith("_part-")]
        return {int(name[6:-5]): self._card(name) for name in names}

    def counted(self) -> int:
        """The number of pieces that are done."""
        return sum(name.startswith("_part-") for name in self.parts.names(""))

    def put(self, piece: Piece, schema: pa.Schema, batches: Iterator[pa.RecordBatch], card: dict[str, Any]) -> dict[str, Any]:
        """Write a piece's rows as its part, then its card, which `batches` may fill while they are made."""
        with self.parts.workspace() as here:
            write(here / "part", self.form, schema, batches, header=self.file is None)
            card["bytes"] = (here / "part").stat().st_size
            self.parts.put(here / "part", "", self.part(piece.number))
        self._put(f"_part-{piece.number:05}.json", card)
        return card

    def finish(self, numbers: Sequence[int], schema: pa.Schema, result: dict[str, Any]) -> None:
        """Join the parts if one file was asked for, then mark the output as complete."""
        if self.file:
            store, name = self.file
            with self.parts.workspace() as here:
                join(self._fetched(numbers, here), here / "joined", self.form, schema)
                store.put(here / "joined", "", name)
        self._put(_DONE, result)
        for number in numbers:
            self.parts.remove_file(f"_part-{number:05}.json")
            if self.file:
                self.parts.remove_file(self.part(number))

    def part(self, number: int) -> str:
        return f"part-{number:05}.{self.form}"

    def _fetched(self, numbers: Sequence[int], here: Path) -> Iterator[Path]:
        for number in numbers:
            yield self.parts.get("", self.part(number), here)
            (here / self.part(number)).unlink(missing_ok=True)

    def _card(self, name: str) -> dict[str, Any]:
        with self.parts.workspace() as here:
            content = self.parts.get("", name, here).read_bytes()
        try:
            return dict(sealed.card_content(content))
        except (sealed.DamagedError, ValueError, TypeError):
            where = f"{files.shown(self.parts.place)}/{name}"
            raise StorageError(f"{where}: damaged, or written by an earlier release; --again begins anew") from None

    def _put(self, name: str, card: dict[str, Any]) -> None:
        with self.parts.workspace() as here:
            (here / name).write_text(sealed.card(card))
            self.parts.put(here / name, "", name)


def output_of(text: str, form: Format | None, cache: Path) -> Output:
    """The output that a person names: one file by its ending, else a folder. Raises RecipeError, DataError."""
    place = text if "://" in text else files.absolute(text)
    name = Path(urlsplit(place).path if "://" in place else place).name
    ending = Path(name).suffix.lower()
    if text.endswith("/") or not ending or (form and ending not in ENDINGS):
        return Output(text, form or "parquet", Store(place, cache), None)
    if ending not in ENDINGS:
        raise RecipeError(f"{files.shown(text)}: files end in {', '.join(ENDINGS)}; a folder of parts ends in no dot and letters, or in /")
    if form and form != ENDINGS[ending]:
        raise RecipeError(f"--format {form}: {files.shown(text)} says {ENDINGS[ending]}")
    return Output(text, ENDINGS[ending], Store(_beside(place, f".{name}.parts"), cache), (Store(_beside(place, ""), cache), name))


def _beside(place: str, name: str) -> str:
    """A file or folder beside a path or URI; without a name, the folder that it lies in."""
    if "://" not in place:
        return str(Path(place).parent / name)
    parts = urlsplit(place)
    folder = parts.path.rstrip("/").rpartition("/")[0]
    return parts._replace(path=f"{folder}/{name}" if name else folder).geturl()


def check_apart(output: Output, source: str) -> None:
    """Raise RecipeError where predictions would be written over, or in among, what is read."""
    if "://" in source or "://" in output.text:
        same = source.rstrip("/") == output.text.rstrip("/")
    else:
        read, written = (Path(os.path.realpath(files.absolute(one))) for one in (source, output.text))
        same = written == read or (read.is_dir() and read in written.parents)
    if same:
        raise RecipeError(f"{output.name}: is the input, or lies inside it; name another place")


def kind_of(batches: Sequence[np.ndarray]) -> pa.DataType:
    """The type of a column, from a few batches of it: the one that all have; float64 for numbers of several kinds; else text."""
    kinds = {array_of(values).type for values in batches} - {pa.null()}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds and all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        fractions = (values[np.isfinite(values)] for values in batches if values.dtype.kind == "f")
        whole = any(map(pa.types.is_integer, kinds)) and all((found == np.floor(found)).all() for found in fractions)
        return pa.int64() if whole else pa.float64()
    return pa.string()


def array_of(values: Any) -> pa.Array:
    """A column as an Arrow array, missing values null: numbers, texts, bytes, lists; arrays of one shape as a tensor type."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values))
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError):  # values of several kinds
        return _texts(values)


def batch_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Columns with the types of `schema`. Raises DataError for a value that has another."""
    return pa.record_batch([_cast(field, array_of(columns[field.name])) for field in schema], schema=schema)


def holds(form: Format, kind: pa.DataType) -> bool:
    """True where a column of that type can be kept: text files hold no bytes, and a table of text no arrays."""
    if form == "parquet":
        return True
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not binary and not (form == "csv" and isinstance(kind, pa.FixedShapeTensorType))


def write(path: Path, form: Format, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, header: bool = True) -> None:
    """Write a file of these rows; `header`: begin a CSV file with the columns' names."""
    if form == "parquet":
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for table in _row_groups(batches):
                writer.write_table(table)
    elif form == "csv":  # lists as JSON: a table of text has no other place for them
        flat = pa.schema([(field.name, pa.string() if pa.types.is_nested(field.type) else field.type) for field in schema])
        with pyarrow.csv.CSVWriter(path, flat, write_options=pyarrow.csv.WriteOptions(include_header=header)) as writer:
            for batch in batches:
                columns = [_texts(column.to_pylist()) if pa.types.is_nested(column.type) else column for column in batch.columns]
                writer.write_table(pa.Table.from_arrays(columns, schema=flat))
    else:
        with path.open("w", encoding="utf-8") as file:
            for batch in batches:
                for row in zip(*map(_listed, batch.columns), strict=True):
                    file.write(_json(dict(zip(schema.names, row, strict=True))) + "\n")


def join(parts: Iterable[Path], path: Path, form: Format, schema: pa.Schema) -> None:
    """Join parts, which were written without headers, into one file."""
    if form == "parquet":
        return write(path, form, schema, (batch for part in parts for batch in pyarrow.parquet.ParquetFile(part).iter_batches(_GROUP_ROWS)))
    write(path, form, schema, ())
    with path.open("ab") as joined:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, joined, 1 << 20)
    return None


def _cast(field: pa.Field, array: pa.Array) -> pa.Array:
    if array.type == field.type:
        return array
    if pa.types.is_string(field.type):
        return _texts(array.to_pylist())
    try:
        return array.cast(field.type)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"column {field.name}: is {array.type}, but {field.type} in the first rows: {error}") from None


def _texts(values: Iterable[Any]) -> pa.Array:
    """Values as text, those that are none as JSON; missing ones stay missing."""
    return pa.array([value if value is None or isinstance(value, str) else _json(value) for value in values], pa.string())


def _json(value: Any) -> str:
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, ensure_ascii=False, default=str)


def _listed(column: pa.Array) -> list[Any]:
    return column.to_numpy_ndarray().tolist() if isinstance(column, pa.FixedShapeTensorArray) else column.to_pylist()


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(len(one) for one in held) >= _GROUP_ROWS or sum(one.nbytes for one in held) >= _GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
