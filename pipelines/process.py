"""This process: work in a thread of the background, and how often Python looks for cyclic garbage.

torch, Ray and MLflow make a million objects as they are imported, none of them garbage, and Python would look through them again and
again: a third of the time that importing takes (Python 3.11).
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")
_USUAL = gc.get_threshold()
_RARE = 500_000


def collect_rarely() -> None:
    """Look for cyclic garbage only after half a million new objects: while modules are imported."""
    gc.set_threshold(_RARE, *_USUAL[1:])


def collect_as_usual() -> None:
    """Look for cyclic garbage as Python does: a network's own cycles may hold memory of its device. What is there now is taken to stay."""
    if not gc.get_freeze_count():  # once: a network that is frozen with the rest would never be freed
        gc.freeze()
    gc.set_threshold(*_USUAL)


def in_background(function: Callable[[], R]) -> Future[R]:
    """Call `function` in a daemon thread, for which nobody waits when the program ends: Ctrl-C must reach the caller, and not wait."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=getattr(function, "__name__", "background"), daemon=True).start()
    return future
