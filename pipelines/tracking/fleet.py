"""Many runs below one parent, sent to MLflow by a single thread: a sweep and its trials.

A run that ended is closed once MLflow has all of it, its figures included; until then it stays here, so an outage of the server costs
nothing but time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.errors import StorageError
from pipelines.tracking.mlflow import Tracker

_INTERVAL_SECONDS = 1.0
_FLUSH_SECONDS = 60.0


@dataclass(frozen=True)
class _End:
    status: str
    tags: Mapping[str, str]


class Fleet:
    """Ships `parent` and the runs that are added, from `start` to `finish`. `tracked(number, run_id)` is told of each that is closed."""

    def __init__(self, parent: Tracker, tracked: Callable[[int, str], None]) -> None:
        self.parent, self._tracked = parent, tracked
        self._live: dict[int, Tracker] = {}
        self._ended: dict[int, _End] = {}
        self._description: Callable[[], str] | None = None
        self._trouble: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sail, name="fleet", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, number: int, run: Tracker) -> None:
        self._live[number] = run

    def end(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""
        self._ended[number] = _End(status, tags)

    def describe(self, text: Callable[[], str]) -> None:
        """The parent's description, Markdown; made and sent when there is time."""
        self._description = text

    def run_id(self, number: int) -> str:
        """The run's id, once MLflow knows it."""
        return self._live[number].run_id if number in self._live else ""

    def finish(self, *, patience_seconds: float = _FLUSH_SECONDS) -> None:
        """Send all that is left. Raises StorageError if MLflow cannot be reached for so long; nothing is lost then."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        deadline = time.monotonic() + patience_seconds
        while not self._round() or self._ended:
            if time.monotonic() > deadline:
                self.parent.flush(patience_seconds=0)  # says who cannot be reached, and why
                raise StorageError(f"not all of the trials could be sent to MLflow ({self._trouble}); give the command again")
            time.sleep(_INTERVAL_SECONDS)

    def abandon(self, status: str, tags: Mapping[str, str], *, patience_seconds: float) -> None:
        """Close all that is open as `status`, the parent too, as far as MLflow can be reached in so long."""
        for number in [number for number in self._live if number not in self._ended]:
            self.end(number, status, tags)
        self.finish(patience_seconds=patience_seconds)
        self.parent.close(status, tags, patience_seconds=patience_seconds)

    def _sail(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self._round()

    def _round(self) -> bool:
        """Send what is new of each run; False if MLflow failed, with the trouble kept."""
        try:
            if not self.parent.ship():
                return False
            if described := self._description:
                self._description = None
                self.parent.describe(described())
            for number, run in list(self._live.items()):
                end = self._ended.get(number)
                if end:
                    self._close(number, run, end)
                elif not run.ship():
                    return False
        except Exception as error:  # whatever a server, a network or a database may throw must not end the sweep
            self._trouble = error
            return False
        return True

    def _close(self, number: int, run: Tracker, end: _End) -> None:
        run.flush(patience_seconds=0)
        for name in ("figures", "scores"):
            if (kept := run.folder.path / name).is_dir():
                run.log_folder(kept, name)
        run.close(end.status, end.tags, patience_seconds=0)
        self._tracked(number, run.run_id)
        del self._live[number], self._ended[number]
