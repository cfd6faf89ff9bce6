"""The prepared datasets of a storage: make one, show them, free those that nobody uses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import ray_data
from pipelines.data import preparation as preparing
from pipelines.data.dataset import MANIFEST, Dataset
from pipelines.run_record import check_writable
from pipelines.run_settings import Run
from pipelines.screen import Screen
from workloads.base import DataError

_DAY_SECONDS = 86_400
_SETTLED_SECONDS = 3600
"""Remains younger than this may belong to a process that is still at work."""
_COPIES = (".parsed", "hub", "given")
"""Folders of parsed files and of rows given in memory (readers/parse_cache.py, readers/hub.py, in_memory.py)."""


def prepared(run: Run, screen: Screen) -> dict[str, Any]:
    """Prepare the data of `run`, on Ray Data unless there is but one piece of work. Raises DataError, RecipeError."""
    began = time.monotonic()
    check_writable(run.root)
    plan = preparing.plan(run)
    was_ready = plan.ready
    with ray_data.executor(in_process=not run.scale.workers) as each:
        dataset = preparing.prepare(run, plan, each)
    summary = dataset.manifest.summary
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.splits.items())
    screen.say(f"{run.data.name}: {counts}; dataset {plan.fingerprint} {'was prepared already' if was_ready else 'is prepared'}")
    preparing.tell(dataset, screen.say)
    return {
        "fingerprint": plan.fingerprint,
        "folder": str(dataset.folder),
        "rows": dataset.manifest.rows,
        "found": was_ready,
        "summary": summary.model_dump(mode="json"),
        "seconds": time.monotonic() - began,
    }


def listed(storage: str, screen: Screen) -> dict[str, Any]:
    """The datasets kept in a storage folder, the one used last first."""
    found = sorted(_datasets(_place(storage)), key=lambda one: one["unused_days"])
    columns = {"fingerprint": "", "source": "", "rows": ",", "mebibytes": ",.1f", "unused_days": ".1f"}
    screen.table(
        "", [name.replace("_", " ") for name in columns], [[format(one[name], how) for name, how in columns.items()] for one in found]
    )
    return {"datasets": found, "bytes": sum(one["bytes"] for one in found)}


def pruned(storage: str, screen: Screen, *, days: float) -> dict[str, Any]:
    """Delete datasets that were not opened for so many days, copies of parsed files as old, and what stopped preparations left."""
    place = _place(storage)
    freed = []
    for one in _datasets(place):
        if one["damaged"] or one["unused_days"] >= days:
            freed.append({"name": one["fingerprint"], "bytes": one["bytes"]})
            shutil.rmtree(place / one["fingerprint"])
    for path in _remains(place, days):
        freed.append({"name": path.name, "bytes": _bytes(path)})
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for one in freed:
        screen.say(f"freed {one['name']}: {one['bytes'] / 2**20:,.1f} MiB")
    screen.say(f"{sum(one['bytes'] for one in freed) / 2**20:,.1f} MiB freed")
    return {"freed": freed, "bytes": sum(one["bytes"] for one in freed)}


def _place(storage: str) -> Path:
    return Path(storage).expanduser().resolve() / "datasets"


def _datasets(place: Path) -> Iterator[dict[str, Any]]:
    for manifest in sorted(place.glob(f"[!.]*/{MANIFEST}")):
        try:
            found = Dataset.open(manifest.parent).manifest
        except DataError:  # of no use to anybody
            found = None
        yield {
            "fingerprint": manifest.parent.name,
            "source": ", ".join(found.source) if found else "damaged",
            "rows": sum(found.rows.values()) if found else 0,
            "bytes": (size := _bytes(manifest.parent)),
            "mebibytes": size / 2**20,
            "unused_days": (time.time() - manifest.stat().st_mtime) / _DAY_SECONDS,
            "damaged": found is None,
        }


def _remains(place: Path, days: float) -> Iterator[Path]:
    """Remains of stopped preparations, and old copies that readers made of their files."""
    now = time.time()
    hidden = (path for path in place.glob(".*") if path.is_dir() and path.name not in _COPIES)
    yield from (path for path in hidden if now - path.stat().st_mtime > _SETTLED_SECONDS)
    copies = (path for kept in _COPIES for path in place.glob(f"{kept}/*"))
    yield from (path for path in copies if now - path.stat().st_mtime >= days * _DAY_SECONDS)
    datasets = (path for path in place.glob("[!.]*") if path.is_dir() and path.name not in _COPIES)
    yield from (path for path in datasets if not (path / MANIFEST).is_file())


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
