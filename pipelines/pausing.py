"""A pause: the driver asks, and all workers stop after the same step, whose checkpoint they leave behind. No step is lost.

The request is what a file in the run's folder says, which every node reaches. The file is made before the workers start and is only
written into: NFS may answer for a minute that a file is not there yet, but shows what is in one whenever it is opened anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Paused:
    """What a worker reports that was asked to pause: the checkpoint of `step` stands."""

    step: int


@dataclass(frozen=True)
class Reason:
    """Why a pause is asked for, as a person is told it."""

    text: str
    """What happened, such as: room for 3 workers."""
    then: str
    """What happens after it, such as: going on with 3."""
    counts: bool = True
    """Whether a worker that is lost meanwhile counts as a retry: not if its end was announced."""


STOP = Reason("asked to stop", "it is the last", counts=False)
"""After this pause nothing is launched again."""


class Pause:
    """The driver's side of one run: at most one request at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reason: Reason | None = None
        """Why workers are asked to pause; None while they are not."""

    @property
    def stopping(self) -> bool:
        """Whether nothing is to be launched again."""
        return self.reason is STOP

    def ask(self, reason: Reason) -> None:
        """Ask the workers to pause. To stop outweighs any other reason."""
        if not self.stopping:
            self.reason = reason
            self._path.write_text("asked")

    def over(self) -> None:
        """Take the request back, before workers are launched; a request to stop stays."""
        if not self.stopping:
            self.reason = None
            self._path.write_text("")


def asked(path: Path) -> Callable[[], bool]:
    """The workers' side: whether a pause is asked for. The file is looked at once a second at most, so this may be called at each step."""
    looked, answer = float("-inf"), False

    def look() -> bool:
        nonlocal looked, answer
        if not answer and time.monotonic() - looked >= _LOOK_SECONDS:
            looked = time.monotonic()
            try:
                answer = bool(path.read_text())
            except OSError:  # nobody will ask: a run without a driver that watches
                answer = False
        return answer

    return look


def never() -> bool:
    """Nobody asks for a pause."""
    return False
