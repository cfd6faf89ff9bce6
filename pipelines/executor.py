"""Who works the pieces of what is judged: this process, or Ray Data from the first time that there is more than one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from cluster import ray_data, session
from pipelines.data.preparation import Each, in_process
from pipelines.run_settings import Run


@contextmanager
def hands(run: Run) -> Iterator[Each]:
    """`each(work, pieces)` for the block; `scale.workers=0` stays in this process, and Ray is started once at most. Raises ClusterError."""
    with ExitStack() as stack:
        started: list[session.Session] = []

        def each(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
            if not run.scale.workers or len(pieces) < 2:
                return in_process(work, pieces)
            if not started:
                started.append(stack.enter_context(session.connect()))
                started[0].ready()
            return ray_data.each(work, pieces)

        yield each
