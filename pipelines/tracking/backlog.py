"""What of a run's journal MLflow has not been given yet, read from the run's folder."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from pipelines.run_record import RunFolder
from pipelines.tracking import journal


@dataclass(frozen=True)
class Backlog:
    """Bytes of the journal that wait, and for how many seconds the first of them has waited."""

    bytes: int
    seconds: float


def backlog(folder: RunFolder, now: float | None = None) -> Backlog:
    """The part of the journal behind what the tracker remembers as sent; all of it where nothing was ever sent."""
    state = folder.path / "mlflow.json"
    sent = int(json.loads(state.read_text())["offset"]) if state.exists() else 0
    size = folder.journal.stat().st_size if folder.journal.exists() else 0
    first = next(journal.read(folder.journal, sent), None)
    if first is None:
        return Backlog(0, 0.0)
    return Backlog(size - sent, max((now or time.time()) - first.time / 1000, 0.0))
