"""Many runs below one parent, sent to MLflow by a single thread: a sweep and its trials.

A run that ended is closed once MLflow has all of it, its figures included; until then it stays here, so an outage of the server costs
nothing but time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from pipelines.tracking.client import first_line
from pipelines.tracking.shipper import Tracker

_INTERVAL_SECONDS = 3.0
_AGAIN_SECONDS = 1.0
_FLUSH_SECONDS = 60.0


class TrialShipper:
    """Ships `parent` and the runs that are added, from `start` to `finish`. `tracked(number, run_id)` is told of each that is closed."""

    def __init__(self, parent: Tracker, tracked: Callable[[int, str], None]) -> None:
        self.parent, self._tracked = parent, tracked
        self._live: dict[int, Tracker] = {}
        self._ended: set[int] = set()
        self._description: Callable[[], str] | None = None
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_stopped, name="trials", daemon=True)

    def start(self, say: Callable[[str], None]) -> None:
        """Begin to send, and `say` where that fails and when it works again."""
        self.parent.say = say
        self._thread.start()

    def add(self, number: int, run: Tracker) -> None:
        self._live[number] = run

    def end(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""
        self._live[number].end(status, tags)
        self._ended.add(number)

    def describe(self, text: Callable[[], str]) -> None:
        """The parent's description, Markdown; made and sent when there is time."""
        self._description = text

    def run_id(self, number: int) -> str:
        """The run's id, once MLflow knows it."""
        return self._live[number].run_id if number in self._live else ""

    def finish(self, *, patience_seconds: float = _FLUSH_SECONDS) -> None:
        """Send all that is left. Raises TrackingError if MLflow cannot be reached for so long; nothing is lost then."""
        self._stop.set()
        deadline = time.monotonic() + patience_seconds
        if self._thread.is_alive():
            self._thread.join(patience_seconds)  # a call to a server that hangs is under way
            if self._thread.is_alive():
                raise self.parent.unreachable(self._trouble)
        while not self._round() or self._ended:
            if time.monotonic() > deadline:
                raise self.parent.unreachable(self._trouble)
            time.sleep(_AGAIN_SECONDS)

    def abandon(self, status: str, tags: Mapping[str, str], *, patience_seconds: float) -> None:
        """Close all that is open as `status`, the parent too, as far as MLflow can be reached in so long."""
        self.parent.end(status, tags)
        for number in [number for number in self._live if number not in self._ended]:
            self.end(number, status, tags)
        self.finish(patience_seconds=patience_seconds)
        self.parent.last_word(patience_seconds=patience_seconds)

    def _ship_until_stopped(self) -> None:
        pause = _AGAIN_SECONDS
        while not self._stop.wait(pause):
            self.parent.tell(self._round())
            pause = _INTERVAL_SECONDS

    def _round(self) -> bool:
        """Send what is new of each run; False if MLflow failed, with the trouble kept."""
        try:
            if not self.parent.ship():
                self._trouble = self.parent.trouble
                return False
            if described := self._description:
                self._description = None
                self.parent.describe(described())
            for number, run in list(self._live.items()):
                if number in self._ended:
                    self._close(number, run)
                elif not run.ship():
                    self._trouble = run.trouble
                    return False
        except Exception as error:  # whatever a server, a network or a database may throw must not end the sweep
            self._trouble = first_line(error)
            return False
        return True

    def _close(self, number: int, run: Tracker) -> None:
        send_all(run)
        self._tracked(number, run.run_id)
        del self._live[number]
        self._ended.discard(number)


def send_all(run: Tracker) -> None:
    """Send what is left of a run that ended, its figures too. Raises TrackingError at once where MLflow cannot be reached."""
    run.flush(patience_seconds=0)
    if run.folder.page.is_dir():
        run.log_folder(run.folder.page)
    run.send_ending()
