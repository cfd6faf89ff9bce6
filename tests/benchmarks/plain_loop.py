"""The loop that people write by hand: the same network, batch and threads, tensors in memory, nothing but torch.

`python -m tests.benchmarks.plain_loop IMAGES EPOCHS BATCH THREADS` prints samples per second and the time to the first step as JSON.
"""

import time

BEGAN = time.time()

import gzip  # noqa: E402  (the clock starts first)
import json  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

TRAINING_ROWS = 8000
MEAN, DEVIATION = 33.3, 78.6  # of MNIST's pixels, in shades of 255


def read_idx(path: str, header_bytes: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header_bytes)


def main(path: str, epochs: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    images = torch.from_numpy(read_idx(path, 16).reshape(-1, 1, 28, 28)[:TRAINING_ROWS].copy())
    labels = torch.from_numpy(read_idx(path.replace("images-idx3", "labels-idx1"), 8)[:TRAINING_ROWS].astype(np.int64))
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 13 * 13, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first_step, steady_rows = 0.0, 0
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), batch):
            index = order[start : start + batch]
            x = (images[index].float() - MEAN) / DEVIATION
            loss = cross_entropy(model(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if first_step:
                steady_rows += len(index)
            else:
                first_step = time.time()
    seconds = time.time() - first_step
    print(json.dumps({"samples_per_second": steady_rows / seconds, "first_step_seconds": first_step - BEGAN}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
