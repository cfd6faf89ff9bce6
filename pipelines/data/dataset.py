"""Prepared datasets: memory-mapped Arrow files and a manifest, written last, that lists and proves them.

A dataset is named by the fingerprint of its inputs, so one that exists is up to date. Each piece of the
source is encoded into parts, a file for each split, and parts are joined into shards of up to 256 MB, each of which is one record batch:
gathering rows from many small ones costs several times as much. Rows that two splits share are counted by their hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines import sealed
from pipelines.data.files import shown
from pipelines.data.splits import SPLITS
from pipelines.data.stats import Summary
from pipelines.data.store import Store
from workloads.base import Arrays, DataError

SHARD_BYTES = 256 << 20
_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
MANIFEST, SAMPLE = "manifest.json", "sample.arrow"


class Shard(BaseModel):
    """One file of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    number: int
    rows: int
    file: sealed.File

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}.arrow"


class Manifest(BaseModel):
    """Description of a prepared dataset: its name, sources and counts, every file's hash, the encoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    fingerprint: str
    source: dict[str, str]
    columns: dict[str, str]
    shards: tuple[Shard, ...]
    sample: sealed.File
    encoding: dict[str, Any]
    summary: Summary
    seal: str = ""
    """Hash of all the rest."""

    def with_seal(self) -> Manifest:
        return self.model_copy(update={"seal": sealed.digest(self.model_dump(mode="json", exclude={"seal"}))})

    @property
    def rows(self) -> dict[str, int]:
        """Stored rows of each split."""
        return {split: sum(shard.rows for shard in self.shards if shard.split == split) for split in SPLITS}

    @property
    def files(self) -> dict[str, sealed.File]:
        return {shard.name: shard.file for shard in self.shards} | {SAMPLE: self.sample}


class MappedRows:
    """Rows of one split (workloads.base.Rows), gathered from memory-mapped columns."""

    def __init__(self, files: Sequence[Path]) -> None:
        chunks: list[dict[str, np.ndarray]] = []
        for file in files:
            chunks += [{name: _view(batch[name]) for name in batch.schema.names} for batch in _mapped(file).to_batches()]
        self._columns = {name: [chunk[name] for chunk in chunks] for name in (chunks[0] if chunks else ())}
        self._starts = np.cumsum([0, *(len(next(iter(chunk.values()))) for chunk in chunks)])

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


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset in `folder`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, *, proofs: Path | None = None) -> Dataset:
        """The dataset in `folder`. Raises DataError naming the file that is not what was written.

        With `proofs`, a folder of this node, all content is compared with its hash, once on this node and again when a file has changed;
        without, only sizes are.
        """
        manifest = _manifest(folder)
        if proofs:
            note = proofs / f"{manifest.fingerprint}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
            wrong = sealed.mismatch_since(note, folder, manifest.files)
        else:
            wrong = sealed.mismatch(folder, manifest.files, content=False)
        if wrong:
            raise DataError(f"{folder}/{wrong}; delete the folder to prepare it anew")
        return cls(folder, manifest)

    @property
    def train(self) -> MappedRows:
        return self._splits["train"]

    @property
    def validation(self) -> MappedRows:
        return self._splits["validation"]

    @property
    def test(self) -> MappedRows:
        return self._splits["test"]

    @cached_property
    def _splits(self) -> dict[str, MappedRows]:
        return {split: MappedRows([self.folder / s.name for s in self.manifest.shards if s.split == split]) for split in SPLITS}

    @cached_property
    def sample(self) -> Arrays:
        """A few raw training rows, as read from the source."""
        table = _mapped(self.folder / SAMPLE)
        columns = ((name, table[name].combine_chunks()) for name in table.column_names)
        return {
            name: chunk.to_numpy_ndarray() if isinstance(chunk, pa.FixedShapeTensorArray) else chunk.to_numpy(zero_copy_only=False)
            for name, chunk in columns
        }


@contextmanager
def parts(folder: Path) -> Iterator[Callable[[str, Arrays], None]]:
    """`add(split, arrays)` for the block: encoded rows of one piece, appended batch by batch to the file of their split in `folder`."""
    writers: dict[str, Any] = {}
    with ExitStack() as files:

        def add(split: str, arrays: Arrays) -> None:
            batch = pa.record_batch({name: _column(array) for name, array in arrays.items()})
            if split not in writers:
                writers[split] = files.enter_context(pa.ipc.new_file(str(folder / split), batch.schema))
            writers[split].write_batch(batch)

        yield add


def join(store: Store, work: str, folder: str, parts_of_shard: Sequence[Any]) -> dict[str, Any]:
    """Join parts that lie in the folder `work` of a store into a shard in its folder `folder`.

    (split, number, names of the parts) to {"shard": the Shard, "columns": name -> type} as JSON values.
    """
    split, number, names = parts_of_shard
    with store.workspace() as here:
        table = pa.concat_tables([_mapped(store.get(work, f"{name}.part", here)) for name in names]).combine_chunks()
        _write(target := here / "joined", table)
        shard = Shard(split=split, number=number, rows=table.num_rows, file=sealed.describe(target))
        store.put(target, folder, shard.name)
    return {"shard": shard.model_dump(mode="json"), "columns": {field.name: _type_name(field.type) for field in table.schema}}


def shards_of(encoded: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, list[str]]]:
    """Group the parts of encoded pieces (encode.Encoder) into shards: (split, number, names of the parts)."""
    shards: list[tuple[str, int, list[str]]] = []
    for split in SPLITS:
        number, size = -1, SHARD_BYTES
        for name, part_bytes in (piece["parts"][split] for piece in encoded if split in piece["parts"]):
            if number < 0 or size + part_bytes > SHARD_BYTES:
                number, size = number + 1, 0
                shards.append((split, number, []))
            shards[-1][2].append(name)
            size += part_bytes
    return shards


def leaked(store: Store, work: str, encoded: Sequence[Mapping[str, Any]]) -> int:
    """Count test rows that are training rows as well, whatever their labels; only the test rows' hashes are held at once."""
    train, test = ([piece["parts"][split][0] for piece in encoded if split in piece["parts"]] for split in ("train", "test"))
    if not train or not test:
        return 0
    with store.workspace() as here:
        hashes = np.concatenate([np.load(store.get(work, f"{name}.npy", here)) for name in test])
        trained_on = np.zeros(len(hashes), bool)
        for name in train:
            trained_on |= np.isin(hashes, np.load(store.get(work, f"{name}.npy", here)))
    return int(trained_on.sum())


def finish(
    store: Store,
    folder: str,
    shards: Sequence[Mapping[str, Any]],
    *,
    fingerprint: str,
    source: dict[str, str],
    encoding: dict[str, Any],
    summary: Summary,
    sample: Mapping[str, np.ndarray],
) -> None:
    """Put the sample and the manifest beside the shards that are in `folder` already; `shards` is what each `join` returned."""
    with store.workspace() as here:
        # raw rows as they are, in a form that needs no unpickling
        columns = {name: pa.array(values.tolist()) if values.dtype == object else _column(values) for name, values in sample.items()}
        _write(here / SAMPLE, pa.table(columns))
        manifest = Manifest(
            fingerprint=fingerprint,
            source=source,
            columns=shards[0]["columns"],
            shards=tuple(Shard.model_validate(one["shard"]) for one in shards),
            sample=sealed.describe(here / SAMPLE),
            encoding=encoding,
            summary=summary,
        )
        (here / MANIFEST).write_text(sealed.text_of(manifest.with_seal()))
        for name in (SAMPLE, MANIFEST):
            store.put(here / name, folder, name)


def fetch(store: Store, fingerprint: str) -> Path:
    """The folder of a dataset on this node, copied there from a remote store by the first process that asks. Raises DataError."""
    folder = store.folder(fingerprint)
    if not store.remote or (folder / MANIFEST).is_file():
        return folder
    with store.alone(fingerprint), store.workspace() as workspace:
        if not (folder / MANIFEST).is_file():
            promised = _manifest(store.get(fingerprint, MANIFEST, workspace).parent).files
            for name in promised:
                store.get(fingerprint, name, workspace)
            if wrong := sealed.mismatch(workspace, promised):
                raise DataError(f"{shown(store.place)}/{fingerprint}/{wrong}; delete the folder to prepare it anew")
            shutil.rmtree(folder, ignore_errors=True)  # what has no manifest can never be trusted again
            folder.parent.mkdir(parents=True, exist_ok=True)
            workspace.rename(folder)
    return folder


def proven(store: Store, fingerprint: str) -> Dataset:
    """A dataset that is in the store, on this node, its bytes compared with their hashes. Raises DataError."""
    dataset = Dataset.open(fetch(store, fingerprint), proofs=store.cache / "proofs")
    with contextlib.suppress(OSError):  # another user's, or read-only
        os.utime(dataset.folder / MANIFEST)  # when it was last used, for those who free what nobody uses
    return dataset


def _manifest(folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder}: not a prepared dataset, there is no {MANIFEST}") from None
    except ValidationError as error:
        raise DataError(f"{folder / MANIFEST}: not a manifest: {error.errors()[0]['msg']}") from None
    if manifest != manifest.with_seal():
        raise DataError(f"{folder / MANIFEST}: its content is not what was written; delete the folder to prepare it anew")
    return manifest


def _type_name(kind: pa.DataType) -> str:
    """A column's type for people: `uint8 1x28x28`."""
    return f"{kind.value_type} {'x'.join(map(str, kind.shape))}" if isinstance(kind, pa.FixedShapeTensorType) else str(kind)


def _write(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _mapped(path: Path) -> pa.Table:
    """The rows of an Arrow file where they lie on the disk."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _column(array: np.ndarray) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(array.ravel().reshape(array.shape))  # of an axis of length 1 any stride is right


def _view(chunk: pa.Array) -> np.ndarray:
    """The numbers where they lie. Not by `to_numpy` or `to_pandas_dtype`, which import pandas (pyarrow 25): 0.2 s for every worker."""
    tensors = isinstance(chunk, pa.FixedShapeTensorArray)
    numbers = chunk.storage.flatten() if tensors else chunk
    dtype = np.dtype(_NUMPY_NAMES.get(str(numbers.type), str(numbers.type)))
    flat = np.frombuffer(numbers.buffers()[1], dtype, count=len(numbers), offset=numbers.offset * dtype.itemsize)
    return flat.reshape(len(chunk), *chunk.type.shape) if tensors else flat
