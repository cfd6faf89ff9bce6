"""The write-ahead journal of a run: one JSON line for each point of its curves and each text it showed, before anything is sent anywhere.

Appending costs microseconds and cannot fail because a server is down. Timestamps are fixed here, so sending a line twice adds
nothing (MLflow drops exact duplicates). A resumed run replays the steps since its checkpoint; their points are here already, so
they are not written again and no curve has a second point at a step.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NO_TEXTS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Point:
    """Values of some metrics, and texts, at a step; `time` in milliseconds since 1970."""

    step: int
    time: int
    metrics: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Appends points to the file at `path`; one writer at a time. A line torn by a crash is cut off on opening."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        whole = path.read_bytes()
        self._file.truncate(whole.rfind(b"\n") + 1)
        self._last: dict[str, int] = {}
        for point in read(path):
            for name in (*point.metrics, *point.texts):
                self._last[name] = max(point.step, self._last.get(name, -1))

    def write(self, step: int, metrics: Mapping[str, float], texts: Mapping[str, str] = _NO_TEXTS) -> None:
        """Append a point; metrics and texts that have one at this step or a later one are left out."""
        new = {name: float(value) for name, value in metrics.items() if step > self._last.get(name, -1)}
        new_texts = {name: text for name, text in texts.items() if step > self._last.get(name, -1)}
        if not new and not new_texts:
            return
        self._last.update(dict.fromkeys((*new, *new_texts), step))
        values = {name: value if abs(value) < float("inf") else str(value) for name, value in new.items()}  # JSON has no NaN
        entry = {"step": step, "time": time.time_ns() // 1_000_000, "metrics": values}
        self._file.write((json.dumps(entry | ({"texts": new_texts} if new_texts else {})) + "\n").encode())
        self._file.flush()

    def sync(self) -> None:
        """Wait until everything written is on the disk; called before a checkpoint is sealed."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path, offset: int = 0) -> Iterator[Point]:
    """The complete points from byte `offset` on."""
    for point, _ in read_from(path, offset):
        yield point


def read_from(path: Path, offset: int) -> Iterator[tuple[Point, int]]:
    """(point, the byte after it) of each complete line from byte `offset` on; nothing where there is no file yet."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            entry: dict[str, Any] = json.loads(line)
            metrics = {name: float(value) for name, value in entry["metrics"].items()}
            yield Point(entry["step"], entry["time"], metrics, entry.get("texts", {})), offset
