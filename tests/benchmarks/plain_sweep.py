"""A sweep as people write it by hand: two processes that share the list of settings, one thread each, nothing but torch.

`python -m tests.benchmarks.plain_sweep IMAGES EPOCHS SETTINGS`, where SETTINGS is a JSON list of {"lr", "filters", "batch"}; prints the
best validation accuracy and the seconds from the first line to the last as JSON.
"""

import time

BEGAN = time.time()

import json  # noqa: E402  (the clock starts first)
import multiprocessing  # noqa: E402
import sys  # noqa: E402
from functools import partial  # noqa: E402

TRAINING_ROWS, VALIDATION_ROWS, PROCESSES = 8000, 1000, 2


def main(path: str, epochs: int, settings: list[dict[str, float]]) -> None:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        accuracies = pool.map(partial(train, path, epochs), settings, chunksize=1)
    print(json.dumps({"best": max(accuracies), "seconds": time.time() - BEGAN}))


def train(path: str, epochs: int, settings: dict[str, float]) -> float:
    """Accuracy on the validation rows after training; looked at after each epoch, as ours is."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    from tests.benchmarks.plain_loop import DEVIATION, MEAN, read_idx

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.from_numpy(read_idx(path, 16).reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(read_idx(path.replace("images-idx3", "labels-idx1"), 8).astype(np.int64))
    filters, batch = int(settings["filters"]), int(settings["batch"])
    model = nn.Sequential(
        nn.Conv2d(1, filters, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(filters * 13 * 13, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"])
    validation = slice(TRAINING_ROWS, TRAINING_ROWS + VALIDATION_ROWS)
    accuracy = 0.0
    for _ in range(epochs):
        order = torch.randperm(TRAINING_ROWS)
        for start in range(0, TRAINING_ROWS, batch):
            index = order[start : start + batch]
            loss = cross_entropy(model((images[index].float() - MEAN) / DEVIATION), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            answers = [model((part.float() - MEAN) / DEVIATION).argmax(1) for part in images[validation].split(batch)]
        accuracy = float((torch.cat(answers) == labels[validation]).float().mean())
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
