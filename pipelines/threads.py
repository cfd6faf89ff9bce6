"""Work in the background, in a thread that nobody waits for when the program ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


def in_background(function: Callable[[], R]) -> Future[R]:
    """`function` in a daemon thread: Ctrl-C must reach this one, and must not wait for that one."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=getattr(function, "__name__", "background"), daemon=True).start()
    return future
