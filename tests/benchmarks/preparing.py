"""Preparing 200,000 images from Parquet, against a pyarrow script that writes the same bytes; and what a second run waits for its data.

Ours is the whole of it: hashing the source, learning the encoding, encoding on Ray Data, hashing what was written, in a Ray session that is
up and has done a small data set before. The script reads, divides by the same splits, and writes; it learns and hashes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import ray_data, session
from pipelines.config import load
from pipelines.data import preparation
from pipelines.data.splits import split_of
from pipelines.run_settings import Run
from tests.benchmarks.processes import run_module
from tests.benchmarks.rows import Row, below, ratio_at_least

_ROWS, _GROUP = 200_000, 20_000
_SHARES = (0.8, 0.1, 0.1)


def measure(*, pairs: int = 5) -> list[Row]:
    with tempfile.TemporaryDirectory() as name, _cache(Path(name)):
        folder = Path(name)
        source = write_images(folder / "images.parquet", _ROWS)
        began = time.perf_counter()
        with session.connect() as connected:
            connected.ready()
            _ours(folder, write_images(folder / "few.parquet", 20_000))
            _, whole = _ours(folder, source), time.perf_counter() - began
            ours, script = [], []
            for _ in range(pairs):
                ours.append(_ROWS / _ours(folder, source))
                script.append(_ROWS / _script(source, folder / "script"))
        seconds = [_first_batch(folder, source) for _ in range(pairs)]
    return [
        ratio_at_least("preparing 200,000 images: ours on Ray Data, pyarrow script", ours, script, unit="rows/s", bound=0.5),
        Row("the same with Ray's start and a first small data set", f"{whole:.1f} s"),
        below("first batch of a second run, after imports (200,000 images)", seconds, unit="s", bound=0.2),
    ]


def write_images(path: Path, rows: int, *, group: int = _GROUP) -> Path:
    """A Parquet file of random images (28, 28) and labels, written group by group."""
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, _batch(rng, 1).schema, compression="none") as writer:
        for start in range(0, rows, group):
            writer.write_table(_batch(rng, min(group, rows - start)))
    return path


def _batch(rng: np.random.Generator, rows: int) -> pa.Table:
    images = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
    return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": np.arange(rows) % 10})


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)


def _run(folder: Path, source: Path) -> Run:
    return load("cnn", [f"data.source={source}", f"storage={folder / 'runs'}"]).run


def _ours(folder: Path, source: Path) -> float:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    began = time.perf_counter()
    run = _run(folder, source)
    preparation.prepare(run, preparation.plan(run), ray_data.each)
    return time.perf_counter() - began


def _script(source: Path, folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.perf_counter()
    table = pq.read_table(source)
    belongs = split_of(0, len(table), shares=_SHARES, seed=0)
    for number, split in enumerate(("train", "validation", "test")):
        rows = np.flatnonzero(belongs == number)
        images = table["image"].combine_chunks().to_numpy_ndarray()[rows][:, None]
        written = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": table["label"].to_numpy()[rows]})
        with pa.ipc.new_file(str(folder / f"{split}.arrow"), written.schema) as writer:
            writer.write_table(written)
    return time.perf_counter() - began


def _first_batch(folder: Path, source: Path) -> float:
    run = _run(folder, source)
    found = preparation.plan(run)
    return run_module("tests.benchmarks.first_batch", found.store.place, str(found.store.cache), found.fingerprint)["seconds"]
