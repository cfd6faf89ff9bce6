"""Ray Data's documented way to ask a network about a file (docs.ray.io: "End-to-end: Offline Batch Inference"), settings as they are there.

A class that holds the model, `map_batches` with two actors, and a Parquet folder written.
`python -m tests.benchmarks.ray_predict IMAGES WEIGHTS OUTPUT` prints rows per second as JSON, Ray's start left out.
"""

import json
import os
import shutil
import sys
import time

import numpy as np
import ray
import torch

from tests.benchmarks.plain_predict import network


class TorchPredictor:
    def __init__(self, weights: str) -> None:
        self.model = network(weights)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensor = torch.as_tensor(batch["image"])[:, None]
        with torch.inference_mode():
            p = self.model(tensor).softmax(1)
        return batch | {"label": p.argmax(1).numpy(), "probability": p.max(1).values.numpy(), "probabilities": p.numpy()}


def main(source: str, weights: str, output: str) -> None:
    # each core offered twice, as ours does: with two cores offered once, the two actors leave none to write with, and it hangs (Ray 2.60)
    ray.init(address="local", num_cpus=2 * len(os.sched_getaffinity(0)), logging_level="ERROR", log_to_driver=False)
    ray.data.range(1).take_all()
    began = time.perf_counter()
    dataset = ray.data.read_parquet(source)
    answers = dataset.map_batches(TorchPredictor, fn_constructor_args=(weights,), compute=ray.data.ActorPoolStrategy(size=2))
    answers.write_parquet(f"{output}.folder")
    seconds = time.perf_counter() - began
    rows = ray.data.read_parquet(f"{output}.folder").count()
    shutil.rmtree(f"{output}.folder")
    print(json.dumps({"rows_per_second": rows / seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
