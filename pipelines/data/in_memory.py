"""Rows in memory as a source: written once below the storage, in a file named by its content, and read like any other file.

So a run on a DataFrame has an identity, is prepared once and can be resumed. Nothing is imported that is not loaded already: a DataFrame
is recognized by its type's module.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import sealed
from pipelines.data.source import joined
from workloads.base import DataError

_ROW_GROUP = 1 << 16
"""Rows of a Parquet row group: work is divided there."""
_EXPECTED = "a pandas DataFrame, a datasets.Dataset, a ray.data.Dataset, or a dict of arrays"


def sources_of(data: Any, folder: Path, batches: Callable[[Any], Iterator[Any]]) -> dict[str, str]:
    """Settings for `data`: {"data.source": path}, or {"data.train": path, "data.test": path …} for a mapping of splits.

    Rows in memory are written into `folder`; a path or URI stays as it is. `batches` gives the rows of a ray.data.Dataset in order, as
    pyarrow tables or, where a column holds tensors, as arrays by column. Raises DataError for what cannot be written as rows.
    """
    if isinstance(data, Mapping) and data and all(_kind(part) != "other" for part in data.values()):
        return {f"data.{split}": _source_of(part, folder, batches) for split, part in data.items()}
    return {"data.source": _source_of(data, folder, batches)}


def _source_of(data: Any, folder: Path, batches: Callable[[Any], Iterator[Any]]) -> str:
    if _kind(data) == "path":
        return os.fspath(data)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{uuid.uuid4().hex}"
    try:
        suffix = _write(data, partial, batches)
        path = folder / f"rows-{_sha256(partial)[:12]}{suffix}"
        if path.exists():
            os.utime(path)  # in use: `prepare --prune` frees what is old
        else:
            os.replace(partial, path)
        return str(path)
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _kind(data: Any) -> str:
    if isinstance(data, str | os.PathLike):
        return "path"
    for base in type(data).__mro__:
        known = (base.__module__.partition(".")[0], base.__name__)
        if known in (("pandas", "DataFrame"), ("datasets", "Dataset"), ("ray", "Dataset")):
            return known[0]
    return "columns" if isinstance(data, Mapping) else "other"


def _write(data: Any, path: Path, batches: Callable[[Any], Iterator[Any]]) -> str:
    """Write rows to `path`; returns the suffix of their format."""
    import pyarrow as pa

    kind = _kind(data)
    try:
        if kind == "pandas":
            return _write_tables(iter([pa.Table.from_pandas(data, preserve_index=False)]), path)
        if kind == "datasets":
            data.save_to_disk(path)
            return ""
        if kind == "ray":
            return _write_batches(batches(data), path)
        if kind == "columns":
            return _write_columns(data, path)
    except DataError:
        raise
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"data: cannot be written as rows: {error}") from error
    raise DataError(f"data: a {type(data).__name__} holds no rows that can be read; give a path, {_EXPECTED}")


def _write_batches(batches: Iterator[Any], path: Path) -> str:
    first = next(batches, None)
    if first is None:
        raise DataError("data: the dataset has no rows")
    if isinstance(first, Mapping):
        return _write_columns(joined([first, *batches]), path)
    return _write_tables(itertools.chain([first], batches), path)


def _write_columns(data: Mapping[Any, Any], path: Path) -> str:
    """Arrays by column: a Parquet file, or an .npz file where a row of a column is an array itself."""
    import pyarrow as pa

    columns = {str(name): np.asarray(column) for name, column in data.items()}
    lengths = {name: len(column) if column.ndim else None for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        told = ", ".join(f"{name}: {'no rows' if length is None else f'{length:,}'}" for name, length in lengths.items())
        raise DataError(f"data: columns of one length are expected, not {told or 'none at all'}")
    if all(column.ndim == 1 for column in columns.values()):
        return _write_tables(iter([pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()})]), path)
    with zipfile.ZipFile(path, "w") as archive:  # numpy.savez would write the time into it, so equal rows would differ
        for name, column in columns.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(column), allow_pickle=False)
    return ".npz"


def _write_tables(tables: Iterator[Any], path: Path) -> str:
    import pyarrow.parquet as parquet

    writer = None
    try:
        for table in tables:
            plain = table.replace_schema_metadata(None)  # that it was a DataFrame is no part of the content
            writer = writer or parquet.ParquetWriter(path, plain.schema)
            writer.write_table(plain, row_group_size=_ROW_GROUP)
    finally:
        if writer:
            writer.close()
    return ".parquet"


def _sha256(path: Path) -> str:
    """Hash of a file's content; of a folder that `save_to_disk` wrote, of its Arrow files, which hold the types as well."""
    files = sorted(path.glob("*.arrow")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(bytes.fromhex(sealed.sha256(file)) for file in files)).hexdigest()
