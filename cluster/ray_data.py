"""Work the pieces of a data set in parallel on Ray Data: all to their end, or as a stream for those who train."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from cluster.session import Session, address, connect, local_resources

_BATCH_ROWS = 8192


@contextmanager
def executor(*, in_process: bool) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]]:
    """`each` for the block: in this process where that is asked for or there is one piece; else on Ray, which is started once at most.

    Raises ClusterError.
    """
    with ExitStack() as stack:
        started: list[Session] = []

        def each_of(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
            if in_process or len(pieces) < 2:
                return [work(piece) for piece in pieces]
            if not started:
                started.append(stack.enter_context(connect()))
                started[0].ready()
            return each(work, pieces)

        yield each_of


def each(work: Callable[[Any], Any], pieces: Sequence[Any], *, most: int | None = None, gpus: float = 0) -> list[Any]:
    """`work(piece)` for each piece, one Ray Data task a piece, results (JSON values) in the pieces' order.

    What `work` raises is raised here as it was. `most`: pieces worked at once; default: as many as there are cores. With `gpus`, each of
    them has so much of the GPUs, and processes stay for piece after piece: for a task with a GPU Ray would start a new one each time.
    """
    from ray.exceptions import RayTaskError

    data = _quiet()

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["item"], "result": json.dumps(work(pieces[row["item"]]))}

    data.DataContext.get_current().raise_original_map_exception = True
    numbers = data.from_items(list(range(len(pieces))), override_num_blocks=len(pieces))
    # by default memory is set aside for what a task may give back (128 MB): in a small store tasks then go one after another (Ray 2.60)
    numbers.context.op_resource_reservation_enabled = False
    # a local cluster offers each core twice (session), but pieces of work have no use for more processes than cores
    at_once = most or (None if address() else min(local_resources().cpus, len(pieces)))

    class Keeper:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return run(row)

    try:
        mapped = numbers.map(Keeper, concurrency=at_once or 1, num_gpus=gpus) if gpus else numbers.map(run, concurrency=at_once)
        rows = mapped.take_all()
    except RayTaskError as error:
        raise error.cause from None
    return [json.loads(row["result"]) for row in sorted(rows, key=lambda row: row["number"])]


def stream(read: Callable[[Any], Iterator[Mapping[str, Any]]], pieces: Sequence[Any]) -> Any:
    """A Ray Dataset of the rows that `read(piece)` gives in batches (arrays by column); each time it is gone through, all is read anew."""
    data = _quiet()

    def rows_of(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in batch["item"]:
            yield from (dict(arrays) for arrays in read(pieces[int(number)]))

    numbers = data.from_items(list(range(len(pieces))), override_num_blocks=len(pieces))
    return numbers.randomize_block_order().map_batches(rows_of, batch_size=1, batch_format="numpy")


def in_order(dataset: Any) -> Iterator[Any]:
    """The rows of a ray.data.Dataset in its own order: pyarrow tables or, where a column holds tensors, arrays by column."""
    import pyarrow as pa

    _quiet()
    tensors = any(isinstance(kind, pa.ExtensionType) for kind in dataset.schema().base_schema.types)
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield from dataset.iter_batches(batch_size=_BATCH_ROWS, batch_format="numpy" if tensors else "pyarrow")
    finally:
        options.preserve_order = before


def _quiet() -> Any:
    """ray.data, without its lines about every execution."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data
