"""The loop that people write to ask a network about a file: batches of 1,024 in, labels and probabilities out; pyarrow and torch alone.

`python -m tests.benchmarks.plain_predict IMAGES WEIGHTS OUTPUT THREADS` prints rows per second, from the first row on, as JSON.
"""

import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import nn

BATCH = 1024


def network(path: str) -> nn.Module:
    """The guide's CNN with trained weights; pixels are standardised by its two constants."""
    weights = load_file(path)
    mean, deviation = (weights.pop(next(name for name in weights if name.endswith(end))) for end in ("mean", "deviation"))

    class Standardize(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() - mean) / deviation

    layers = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 13 * 13, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    layers.load_state_dict(dict(zip(layers.state_dict(), weights_in_order(weights), strict=True)))
    return nn.Sequential(Standardize(), layers).eval()


def weights_in_order(weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Convolution first, then the dense layers from the input on: weight and bias of each."""
    shapes = ((32, 1, 3, 3), (32,), (128, 32 * 13 * 13), (128,), (10, 128), (10,))
    return [next(tensor for tensor in weights.values() if tuple(tensor.shape) == shape) for shape in shapes]


def main(source: str, weights: str, output: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = network(weights)
    began, labels, probabilities = time.perf_counter(), [], []
    with torch.inference_mode():
        for batch in pq.ParquetFile(source).iter_batches(BATCH, columns=["image"]):
            images = torch.from_numpy(batch["image"].to_numpy_ndarray().copy())[:, None]
            p = model(images).softmax(1)
            labels.append(p.argmax(1).numpy())
            probabilities.append(p.numpy())
    p = np.concatenate(probabilities)
    pq.write_table(pa.table({"label": np.concatenate(labels), "probability": p.max(1), "probabilities": list(p)}), output)
    print(json.dumps({"rows_per_second": len(p) / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
