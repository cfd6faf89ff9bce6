"""Make things before they are asked for, in threads, and give them in the order in which they would have been made."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 2
_END = object()


@contextmanager
def ahead(items: Iterable[T], depth: int = _AHEAD) -> Iterator[Iterator[T]]:
    """The same items, up to `depth` of them made before they are asked for, by a thread that ends with the `with` block.

    What making one raises is raised where it is asked for.
    """
    ready: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            put(_END, error)
        else:
            put(_END)

    def made() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if error:
                raise error
            if item is _END:
                return
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=make, name="delivery", daemon=True)
    thread.start()
    try:
        yield made()
    finally:
        stop.set()
        thread.join()


def side_by_side(sequences: Iterable[Iterable[T]], threads: int = 2) -> Iterator[T]:
    """The items of all sequences, one sequence after another, while the next ones are begun by threads of their own."""
    with ExitStack() as stack:
        begun: deque[tuple[AbstractContextManager[Iterator[T]], Iterator[T]]] = deque()

        def end_all() -> None:
            for context, _ in begun:
                context.__exit__(None, None, None)

        stack.callback(end_all)
        waiting = iter(sequences)
        while True:
            while len(begun) < threads and (sequence := next(waiting, None)) is not None:
                context = ahead(sequence)
                begun.append((context, context.__enter__()))
            if not begun:
                return
            yield from begun[0][1]
            begun.popleft()[0].__exit__(None, None, None)
