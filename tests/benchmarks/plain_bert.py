"""BERT's fine-tuning loop as tutorials write it: texts padded to the longest that is allowed, a DataLoader, AdamW; nothing but torch.

`python -m tests.benchmarks.plain_bert ROWS EPOCHS BATCH THREADS` prints samples per second and the time to the first step as JSON. ROWS
is a file of numpy arrays (tokens, length, label) and of the network's config, so that both loops train the same network on the same rows.
"""

import time

BEGAN = time.time()

import json  # noqa: E402  (the clock starts first)
import sys  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification  # noqa: E402


def main(path: str, epochs: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    with np.load(path) as file:
        tokens, length, label = (torch.from_numpy(file[name]).long() for name in ("tokens", "length", "label"))
        config = BertConfig(**json.loads(str(file["config"])))
    mask = (torch.arange(tokens.shape[1]) < length[:, None]).long()
    model = BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    first_step, steady_rows = 0.0, 0
    for _ in range(epochs):
        for input_ids, attention_mask, labels in DataLoader(TensorDataset(tokens, mask, label), batch_size=batch, shuffle=True):
            loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if first_step:
                steady_rows += len(labels)
            else:
                first_step = time.time()
    seconds = time.time() - first_step
    print(json.dumps({"samples_per_second": steady_rows / seconds, "first_step_seconds": first_step - BEGAN}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
