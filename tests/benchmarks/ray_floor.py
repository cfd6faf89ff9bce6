"""The least that a Ray Train run takes to begin: import, init and fit of a function that does nothing, one after another as documented.

`python -m tests.benchmarks.ray_floor FOLDER` prints the seconds from the process's first line to the function's first line as JSON.
"""

import time

BEGAN = time.time()

import json  # noqa: E402  (the clock starts first)
import sys  # noqa: E402


def main(folder: str) -> None:
    import ray

    ray.init(address="local")
    import ray.train.torch
    from ray.train import RunConfig, ScalingConfig

    def loop() -> float:
        return time.time()

    trainer = ray.train.torch.TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 2}),
        run_config=RunConfig(storage_path=folder),
    )
    reached = trainer.fit().return_value
    print(json.dumps({"first_line_seconds": reached - BEGAN}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
