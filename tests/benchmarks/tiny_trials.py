"""What a trial costs besides its training: a sweep whose trials sleep for 10 ms, with its search, ledger, tracking and Ray Tune.

`python -m tests.benchmarks.tiny_trials STORAGE TRIALS` prints as JSON the milliseconds from the end of a trial to that of the next, in the
first and in the second half of the sweep: whether a trial costs more the more there were. The first ones, in which processes are started,
are left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pipelines.screen import Screen
from pipelines.verbs import sweep as sweeping

_SECONDS = 0.010
_FIRST = 5


def ten_milliseconds(task: Any, weights: Path | None) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """A trial that trains nothing."""
    time.sleep(_SECONDS)
    yield {"value": 0.5, "validation": 1, "step": 1, "scores": {task.metric: 0.5}, "checkpoint": "", "last": True}
    return {"metrics": {task.metric: 0.5}}


def main(storage: str, trials: int) -> None:
    sweeping.train_here = ten_milliseconds  # in the place of training; all else is what `raylway sweep` does
    name = f"tiny-{trials}"
    settings = [
        f"storage={storage}",
        f"name={name}",
        "sweep.space.optim.lr=loguniform(1e-4, 1e-1)",
        f"sweep.trials={trials}",
        "scale.cpus=1",
    ]
    sweeping.sweep("cnn", settings, screen=Screen(as_json=True))
    events = [json.loads(line) for line in (Path(storage) / "cnn" / name / "ledger.jsonl").read_text().splitlines()]
    ended = [event["time"] for event in events if event["event"] == "ended"]
    middle = (_FIRST + len(ended)) // 2
    print(json.dumps({"first_half": _apart(ended[_FIRST : middle + 1]), "second_half": _apart(ended[middle:])}))


def _apart(times: list[float]) -> float:
    return 1000 * (times[-1] - times[0]) / (len(times) - 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
