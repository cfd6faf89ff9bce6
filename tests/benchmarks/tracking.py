"""What a step pays for being tracked: the time inside `Journal.write`, three metrics, on a real file.

First a write at every step, back to back. Then as often as a run writes by default, between steps of work, where each write finds the
caches and the core cold; then with the shipper sending to an MLflow database from the same process as well, as with `scale.workers=0`:
there the two compete for the interpreter, while under Ray the shipper lives in another process. Means over many steps, so rare long
waits count; what else runs on the machine counts with them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.run_record import RunFolder
from pipelines.settings import Train
from pipelines.tracking.journal import Journal
from pipelines.tracking.shipper import About, Tracker
from tests.benchmarks.rows import Row, below

_UNIT, _BOUND = "us/step", 50.0
_STEP_SECONDS = 0.005
_EVERY: int = Train.model_fields["log_every"].default
_OPEN_SECONDS = 120.0


def measure(*, rounds: int = 5, steps: int = 10_000, worked_steps: int = 300) -> list[Row]:
    with tempfile.TemporaryDirectory() as storage:
        root = Path(storage)
        costs = {
            "tracking: a write at every step, back to back": _costs(root / "alone", rounds, steps, lambda: None, every=1),
            f"tracking: every {_EVERY} steps of 5 ms": _costs(root / "between", rounds, worked_steps, _work),
            "tracking: the same, MLflow shipper beside it": _shipped(root, rounds, worked_steps),
        }
    return [below(name, ours, unit=_UNIT, bound=_BOUND) for name, ours in costs.items()]


def _costs(path: Path, rounds: int, steps: int, work: Callable[[], None], every: int = _EVERY) -> list[float]:
    """Microseconds that a step spends writing, one mean for each round."""
    journal = Journal(path)
    costs = []
    for number in range(rounds):
        spent = 0.0
        for step in range(number * steps, (number + 1) * steps):
            work()
            spent += _write(journal, step) if step % every == 0 else 0.0
        costs.append(1e6 * spent / steps)
    journal.close()
    return costs


def _shipped(root: Path, rounds: int, steps: int) -> list[float]:
    folder = RunFolder(root / "shipped")
    folder.path.mkdir()
    about = About(
        name="shipped", experiment="benchmarks", params={}, tags={}, source="none", fingerprint="none", config="", began=time.time()
    )
    tracker = Tracker(f"sqlite:///{root / 'mlflow.db'}", folder, root, about)
    tracker.start()
    _wait_until_open(tracker)
    costs = _costs(folder.journal, rounds, steps, _work)
    tracker.close("FINISHED", {})  # raises if MLflow was not reached: then nothing was measured
    return costs


def _write(journal: Journal, step: int) -> float:
    began = time.perf_counter()
    journal.write(step, {"loss": 2.3025850929940455 / (step + 1), "accuracy": 0.1015625, "lr": 1e-3})
    return time.perf_counter() - began


def _work() -> None:
    """A step's worth of small torch calls, which let go of the interpreter and ask for it again as training does."""
    matrix, until = torch.ones(256, 256), time.perf_counter() + _STEP_SECONDS
    while time.perf_counter() < until:
        matrix @ matrix


def _wait_until_open(tracker: Tracker) -> None:
    """Making the database takes seconds of CPU once; the steady cost is asked for here."""
    deadline = time.monotonic() + _OPEN_SECONDS
    while not tracker.run_id and time.monotonic() < deadline:
        time.sleep(0.1)
