"""Work the pieces of a data set in parallel on Ray Data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any


def each(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
    """`work(piece)` for each piece, one Ray Data task a piece, results (JSON values) in the pieces' order.

    What `work` raises is raised here as it was.
    """
    import ray.data
    from ray.exceptions import RayTaskError

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["item"], "result": json.dumps(work(pieces[row["item"]]))}

    numbers = ray.data.from_items(list(range(len(pieces))), override_num_blocks=len(pieces))
    try:
        rows = numbers.map(run).take_all()
    except RayTaskError as error:
        raise _cause(error) from None
    return [json.loads(row["result"]) for row in sorted(rows, key=lambda row: row["number"])]


def _cause(error: BaseException) -> BaseException:
    """The innermost exception: Ray Data wraps what a task raised twice."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return error
