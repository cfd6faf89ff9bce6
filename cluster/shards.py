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

    ray.data.DataContext.get_current().raise_original_map_exception = True
    numbers = ray.data.from_items(list(range(len(pieces))), override_num_blocks=len(pieces))
    try:
        rows = numbers.map(run).take_all()
    except RayTaskError as error:
        raise error.cause from None
    return [json.loads(row["result"]) for row in sorted(rows, key=lambda row: row["number"])]
