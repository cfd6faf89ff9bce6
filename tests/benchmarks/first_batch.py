"""Open a prepared dataset as a worker does and gather the first batch of 128; print the seconds after all imports."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from pipelines.config import load
from pipelines.data import dataset
from pipelines.data.order import micro_batches
from pipelines.data.store import Store
from pipelines.training.batches import ordered


def main(place: str, cache: str, fingerprint: str) -> None:
    run = load("cnn", ["train.batch=128"]).run
    began = time.perf_counter()
    data = dataset.proven(Store(place, Path(cache)), fingerprint)
    [(_, batch)] = ordered(run, data.train, micro_batches(128, 128, rank=0, world_size=1))(0)
    print(json.dumps({"seconds": time.perf_counter() - began, "rows": len(batch["label"])}))


if __name__ == "__main__":
    main(*sys.argv[1:])
