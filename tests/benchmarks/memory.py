"""Preparing 5 GB of Parquet where there are 2 GB of memory, and what a second worker on the same host adds to the first.

The limit is a control group's, which the kernel enforces, page cache included; where no group can be made, the peak is only measured. It
takes minutes and 12 GB of disk, so it runs only when it is named: `python -m tests.benchmarks memory`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.processes import ROOT
from tests.benchmarks.rows import Row, below

_GIB = 1 << 30
_SOURCE_BYTES, _LIMIT_BYTES = 5 * 10**9, 2 * _GIB
_GROUP_ROWS = 100_000
_CONTROL = Path("/sys/fs/cgroup")


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "images.parquet"
        _write(source, _SOURCE_BYTES // 784)
        with _group(_LIMIT_BYTES) as group:
            command = [sys.executable, "-m", "pipelines", "prepare", "cnn", f"data.source={source}", f"storage={folder / 'runs'}"]
            peak, seconds = _peak([*command, "scale.workers=0"], group, folder)
        how = "in a control group of 2 GiB" if group else "no control group could be made, so only measured"
        size = source.stat().st_size / 10**9
        dataset = next((folder / "runs" / "datasets").glob("*/manifest.json")).parent
        one, two = _mapped(dataset, 1), _mapped(dataset, 2)
    return [
        below(f"preparing {size:.1f} GB of Parquet, peak anonymous memory, {how}", [peak / 2**20], unit="MiB", bound=2048),
        Row("the same, seconds", f"{seconds:,.0f} s"),
        Row("pages of the dataset in memory (PSS): 2 workers, 1 worker", f"{two / 2**20:,.0f} MiB", f"{one / 2**20:,.0f} MiB",
            f"{two / one:.2f}", "<= 1.05", two <= 1.05 * one),
    ]  # fmt: skip


def _write(path: Path, rows: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (_GROUP_ROWS, 28, 28), dtype=np.uint8)
    labels = np.arange(_GROUP_ROWS) % 10
    with pq.ParquetWriter(path, _table(images[:1], labels[:1]).schema, compression="none") as writer:
        for number in range(rows // _GROUP_ROWS):
            writer.write_table(_table(images ^ np.uint8(number % 256), labels))


def _table(images: np.ndarray, labels: np.ndarray) -> pa.Table:
    return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "label": labels})


@contextmanager
def _group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group with that much memory (version 2, or 1), or None where this user may not make one."""
    parent = _CONTROL / "memory" if (_CONTROL / "memory").is_dir() else _CONTROL
    group = parent / f"raylway-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if parent != _CONTROL else "memory.max")
        limit.write_text(str(limit_bytes))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def _peak(command: list[str], group: Path | None, folder: Path) -> tuple[int, float]:
    """The most anonymous memory that a process held, and its seconds."""
    join = f"echo $$ > {group}/cgroup.procs && " if group else ""
    began = time.monotonic()
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(["sh", "-c", f'{join}exec "$@"', "sh", *command], cwd=ROOT, env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _of(Path(f"/proc/{process.pid}/status"), "RssAnon"))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"preparing ended with {process.returncode}")
    return peak, time.monotonic() - began


def _mapped(dataset: Path, workers: int) -> int:
    """Bytes of the dataset that so many processes, each of which has read all training rows, hold in memory together."""
    command = [sys.executable, "-m", "tests.benchmarks.mapping", str(dataset)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    total = 0
    for asked in ("all rows are read", "bytes"):  # in step: nobody measures before all have read, nor ends before all have measured
        for process in processes:
            assert process.stdout
            told = json.loads(process.stdout.readline())
            total += told.get("bytes", 0)
        for process in processes:
            assert process.stdin, asked
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.wait()
    return total


def _of(file: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found.group(1)) if found else 0
