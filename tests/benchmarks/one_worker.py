"""What a Ray worker does, without Ray: `pipelines.training.worker.work` on a prepared dataset, in this process.

`python -m tests.benchmarks.one_worker RECIPE key=value…` prints samples per second as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.config import load
from pipelines.data import preparation
from pipelines.run_record import RunFolder
from pipelines.training.worker import Job, work


def main(recipe: str, overrides: Sequence[str]) -> None:
    run = load(recipe, overrides).run
    plan = preparation.plan(run)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(run, RunFolder(Path(folder)), plan.store, plan.fingerprint, run.identity(plan.fingerprint), run.scale.threads or 1)
        outcome = work(job, rank=0, world_size=1, device="cpu")
    print(json.dumps({"samples_per_second": outcome.samples_per_second}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
