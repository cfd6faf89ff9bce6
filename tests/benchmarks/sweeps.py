"""A sweep's whole wall time against two plain processes that do the same trainings; what a trial costs besides its training.

Ours begins with an empty folder: it prepares the data, makes MLflow's database, starts Ray, and leaves a run with curves and figures for
every trial. The plain one reads the images into memory and remembers one number.
"""

from __future__ import annotations

import json
import tempfile
import time

from pipelines.search.space import read
from pipelines.search.suggest import Search
from tests.benchmarks.processes import run_module
from tests.benchmarks.rows import Row, ratio_at_most
from tests.benchmarks.shared_data import MNIST, present

_TRIALS, _EPOCHS = 16, 2
_SPACE = {"optim.lr": "loguniform(1e-4, 1e-2)", "model.filters": "choice(16, 32, 48)", "train.batch": "choice(64, 128, 256)"}
_TINY = 200


def measure(*, pairs: int = 3) -> list[Row]:
    rows = []
    if present("sweep of 16 trials", MNIST):
        ours, apart, plain = [], [], []
        for _ in range(pairs):
            whole, startup = _ours()
            ours.append(whole)
            apart.append(whole - startup)
            plain.append(_plain())
        rows = [
            ratio_at_most("sweep: 16 trials of the CNN, two plain processes", ours, plain, unit="s", bound=1.25),
            ratio_at_most("sweep: the same, without Ray's start", apart, plain, unit="s", bound=None),
        ]
    late, early = [], []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as storage:
            apart = run_module("tests.benchmarks.tiny_trials", storage, str(_TINY))
        late.append(apart["second_half"])
        early.append(apart["first_half"])
    return [*rows, ratio_at_most(f"sweep: 10 ms trials, the second half of {_TINY}, the first", late, early, unit="ms", bound=None)]


def _ours() -> tuple[float, float]:
    """Seconds of the whole command, and of these until Ray answered."""
    settings = [f"data.source={MNIST}", f"train.epochs={_EPOCHS}"]
    settings += ["scale.cpus=1", "sweep.search=random", "optim.schedule=constant", "optim.warmup=0", "track.register=false"]
    space = [word for key, text in _SPACE.items() for word in ("--space", f"{key}={text}")]
    with tempfile.TemporaryDirectory() as storage:
        began = time.monotonic()
        result = run_module("pipelines", "sweep", "cnn", *settings, *space, "--trials", str(_TRIALS), f"storage={storage}/runs", "--json")
        return time.monotonic() - began, result["startup_seconds"]


def _plain() -> float:
    search = Search(read(_SPACE), mode="max", method="random", scheduler="none", grace=1, seed=0)
    points = [search.suggest(number) or {} for number in range(_TRIALS)]
    settings = [{"lr": each["optim.lr"], "filters": each["model.filters"], "batch": each["train.batch"]} for each in points]
    began = time.monotonic()
    run_module("tests.benchmarks.plain_sweep", str(MNIST), str(_EPOCHS), json.dumps(settings))
    return time.monotonic() - began
