"""The loop that people write by hand for an LSTM: windows in a TensorDataset, a DataLoader, torch's Adam, nothing but torch and pandas.

The guide's network (two layers of 50, a dense head) on column OT of ETTh1: 96 hours in, 24 out.
`python -m tests.benchmarks.plain_lstm SERIES EPOCHS BATCH THREADS` prints samples per second and the time to the first step as JSON.
"""

import time

BEGAN = time.time()

import json  # noqa: E402  (the clock starts first)
import sys  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

TRAINING_ROWS, WINDOW, HORIZON = 8640, 96, 24


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 50, num_layers=2, batch_first=True)
        self.head = nn.Linear(50, HORIZON)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.head(out[:, -1])


def main(path: str, epochs: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    series = pd.read_csv(path)["OT"].to_numpy()[:TRAINING_ROWS]
    series = ((series - series.mean()) / series.std()).astype(np.float32)
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(series, WINDOW + HORIZON).copy())
    dataset = TensorDataset(windows[:, :WINDOW, None], windows[:, WINDOW:])
    loader = DataLoader(dataset, batch_size=batch, shuffle=True)
    model = Forecaster()
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first_step, steady_rows = 0.0, 0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            if first_step:
                steady_rows += len(x)
            else:
                first_step = time.time()
    seconds = time.time() - first_step
    print(json.dumps({"samples_per_second": steady_rows / seconds, "first_step_seconds": first_step - BEGAN}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
