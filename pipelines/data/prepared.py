"""Prepared datasets: Arrow files that are memory-mapped without a copy, and a manifest, written last, that names and proves them.

A dataset's folder is named by the fingerprint of what went in, so finding it again is the whole check whether it is up to date.
A split is one file of few large record batches: gathering rows from many small ones costs several times as much.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines import integrity
from pipelines.data.splits import SPLITS
from workloads.base import Arrays, DataError

_BATCH_BYTES = 1 << 30
MANIFEST = "manifest.json"
SAMPLE = "sample.npz"


class Manifest(BaseModel):
    """What a prepared dataset is: its name, what it was made from, how many rows, every file's size and hash, the encoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    fingerprint: str
    source: dict[str, str]
    rows: dict[str, int]
    columns: dict[str, str]
    files: dict[str, integrity.File]
    encoding: dict[str, Any]
    seal: str = ""
    """Hash of all the rest."""

    def sealed(self) -> Manifest:
        rest = json.dumps(self.model_dump(mode="json", exclude={"seal"}), sort_keys=True)
        return self.model_copy(update={"seal": hashlib.sha256(rest.encode()).hexdigest()})


class MappedRows:
    """Rows of one split (workloads.base.Rows), gathered from memory-mapped columns."""

    def __init__(self, file: Path) -> None:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._columns = {name: [_view(chunk) for chunk in table[name].chunks] for name in table.column_names}
        self._starts = np.cumsum([0, *(len(chunk) for chunk in table[table.column_names[0]].chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, index: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Rows `index` of each column, in that order, as new arrays."""
        return {name: self._gather(self._columns[name], index) for name in columns or self._columns}

    def _gather(self, chunks: list[np.ndarray], index: np.ndarray) -> np.ndarray:
        if len(chunks) == 1:
            return chunks[0].take(index, axis=0)
        gathered = np.empty((len(index), *chunks[0].shape[1:]), chunks[0].dtype)
        chunk_of = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(chunk_of):
            here = np.flatnonzero(chunk_of == number)
            gathered[here] = chunks[number].take(index[here] - self._starts[number], axis=0)
        return gathered


class Dataset:
    """A prepared dataset in `folder`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Dataset:
        """The dataset in `folder`; `verify` reads every byte and compares its hash. Raises DataError naming the file."""
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise DataError(f"{folder}: not a prepared dataset, there is no {MANIFEST}") from None
        except ValidationError as error:
            raise DataError(f"{folder / MANIFEST}: not a manifest: {error.errors()[0]['msg']}") from None
        if manifest != manifest.sealed() or not {*(f"{split}.arrow" for split in SPLITS), SAMPLE} <= set(manifest.files):
            raise DataError(f"{folder / MANIFEST}: its content is not what was written; delete the folder to prepare it anew")
        if wrong := integrity.mismatch(folder, manifest.files, content=verify):
            raise DataError(f"{folder}/{wrong}; delete the folder to prepare it anew")
        return cls(folder, manifest)

    @cached_property
    def train(self) -> MappedRows:
        return MappedRows(self.folder / "train.arrow")

    @cached_property
    def validation(self) -> MappedRows:
        return MappedRows(self.folder / "validation.arrow")

    @cached_property
    def test(self) -> MappedRows:
        return MappedRows(self.folder / "test.arrow")

    @cached_property
    def sample(self) -> Arrays:
        """A few raw training rows, as the source gave them."""
        with np.load(self.folder / SAMPLE, allow_pickle=False) as file:
            return dict(file)


def write_part(folder: Path, split: str, number: int, arrays: Arrays) -> None:
    """Encoded rows of one split from one piece of the source, to be joined by `finish`."""
    columns = {name: _column(array) for name, array in arrays.items()}
    _write_arrow(folder / f"{split}-{number:06}.part", [pa.table(columns)])


def finish(partial: Path, folder: Path, *, fingerprint: str, source: dict[str, str], encoding: dict[str, Any], sample: Arrays) -> Dataset:
    """Join the parts in `partial`, write the manifest last, and put the whole under its final name `folder` in one step."""
    rows: dict[str, int] = {}
    columns: dict[str, str] = {}
    for split in SPLITS:
        parts = sorted(partial.glob(f"{split}-*.part"))
        rows[split], columns = _join(parts, partial / f"{split}.arrow")
        if rows[split] == 0:
            raise DataError(f"the {split} split has no rows; give it a larger share, or more data")
        for part in parts:
            part.unlink()
    np.savez(partial / SAMPLE, allow_pickle=False, **dict(sample))
    files = {path.name: integrity.describe(path) for path in sorted(partial.iterdir())}
    manifest = Manifest(fingerprint=fingerprint, source=source, rows=rows, columns=columns, files=files, encoding=encoding)
    (partial / MANIFEST).write_text(json.dumps(manifest.sealed().model_dump(mode="json"), indent=1))
    if folder.is_dir() and not (folder / MANIFEST).is_file():  # what a deleted manifest leaves can never be trusted again
        shutil.rmtree(folder)
    try:
        os.rename(partial, folder)
    except OSError:  # another process was first; what it made has the same name, so the same content
        shutil.rmtree(partial)
    return Dataset.open(folder, verify=False)


def partial_folder(folder: Path) -> Path:
    """A fresh folder beside the final one, in which a dataset is written; never mistaken for a finished one."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    return partial


def _column(array: np.ndarray) -> pa.Array:
    return pa.array(array) if array.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(array.copy())  # a copy has no odd strides


def _view(chunk: pa.Array) -> np.ndarray:
    return chunk.to_numpy_ndarray() if isinstance(chunk, pa.FixedShapeTensorArray) else chunk.to_numpy(zero_copy_only=True)


def _join(parts: Sequence[Path], target: Path) -> tuple[int, dict[str, str]]:
    tables = [pa.ipc.open_file(pa.memory_map(str(part))).read_all() for part in parts]
    _write_arrow(target, (pa.concat_tables(group).combine_chunks() for group in _groups(tables)))
    schema = tables[0].schema if tables else pa.schema([])
    return sum(table.num_rows for table in tables), {field.name: str(field.type) for field in schema}


def _groups(tables: Sequence[pa.Table]) -> Iterable[list[pa.Table]]:
    group: list[pa.Table] = []
    for table in tables:
        if group and sum(each.nbytes for each in [*group, table]) > _BATCH_BYTES:
            yield group
            group = []
        group.append(table)
    if group:
        yield group


def _write_arrow(path: Path, tables: Iterable[pa.Table]) -> None:
    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for table in tables:
            writer = writer or pa.ipc.new_file(sink, table.schema)
            writer.write_table(table)
        if writer:
            writer.close()
