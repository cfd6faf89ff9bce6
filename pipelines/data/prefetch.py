"""Make things before they are asked for, in threads, and give them in the order in which they would have been made."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_AHEAD = 2
_END = object()


@contextmanager
def ahead(items: Iterable[T], depth: int = _AHEAD) -> Iterator[Iterator[T]]:
    """The same items, up to `depth` of them waiting and one more being made, by a thread that ends with the last or with the block.

    What making one raises is raised where it is asked for.
    """
    making: Iterator[Any] = iter(items)
    thread = ThreadPoolExecutor(1, "delivery")
    waiting: deque[Future[Any]] = deque(thread.submit(next, making, _END) for _ in range(depth + 1))

    def made() -> Iterator[T]:
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, making, _END))
            yield item
        thread.shutdown()

    try:
        yield made()
    finally:
        thread.shutdown(cancel_futures=True)


def side_by_side(sequences: Iterable[Iterable[T]], threads: int = 2) -> Iterator[T]:
    """The items of all sequences, one sequence after another, while the next ones are begun by threads of their own."""
    with ExitStack() as stack:
        begun: deque[Iterator[T]] = deque()
        to_begin = iter(sequences)
        while True:
            begun += [stack.enter_context(ahead(sequence)) for sequence in itertools.islice(to_begin, threads - len(begun))]
            if not begun:
                return
            yield from begun.popleft()
