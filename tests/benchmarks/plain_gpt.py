"""The loop that people write by hand: a GPT of the same sizes, batch and threads, its text in a memory map, nothing but torch.

After nanoGPT's train.py (github.com/karpathy/nanoGPT): 4 layers, 4 heads, width 128, window 64, batches at random places of the text.
`python -m tests.benchmarks.plain_gpt TEXT STEPS BATCH THREADS` prints samples per second and the time to the first step as JSON.
"""

import time

BEGAN = time.time()

import json  # noqa: E402  (the clock starts first)
import math  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

# B rows, T tokens, D width, H heads, K width of a head

LAYERS, HEADS, WIDTH, WINDOW = 4, 4, 128, 64
TRAINING_SHARE, LOG_EVERY = 0.9, 10
LR, LOWEST_LR, WARMUP, WEIGHT_DECAY, CLIP = 1e-3, 1e-4, 100, 0.1, 1.0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.size()
        q, k, v = (part.view(B, T, HEADS, D // HEADS).transpose(1, 2) for part in self.c_attn(x_BTD).split(WIDTH, dim=2))
        y_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y_BHTK.transpose(1, 2).contiguous().view(B, T, D))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.ln_1(x_BTD))
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class GPT(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, WIDTH), nn.Embedding(WINDOW, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        self.apply(init_weights)

    def forward(self, token_BT: Tensor, target_BT: Tensor) -> Tensor:
        x_BTD = self.wte(token_BT) + self.wpe(torch.arange(token_BT.size(1)))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = self.lm_head(self.ln_f(x_BTD))
        return F.cross_entropy(logits_BTV.view(-1, logits_BTV.size(-1)), target_BT.view(-1))


def init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def get_batch(path: Path, batch: int) -> tuple[Tensor, Tensor]:
    data = np.memmap(path, dtype=np.uint16, mode="r")  # made anew every time, or it leaks memory, says nanoGPT
    places = torch.randint(len(data) - WINDOW, (batch,))
    x = torch.stack([torch.from_numpy(data[i : i + WINDOW].astype(np.int64)) for i in places])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + WINDOW].astype(np.int64)) for i in places])
    return x, y


def learning_rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return LOWEST_LR + 0.5 * (1 + math.cos(math.pi * done)) * (LR - LOWEST_LR)


def main(text: str, steps: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    whole = Path(text).read_text(encoding="utf-8")
    number = {character: place for place, character in enumerate(sorted(set(whole)))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.array([number[character] for character in whole[: int(TRAINING_SHARE * len(whole))]], dtype=np.uint16).tofile(path)
        train(path, len(number), steps, batch)


def train(path: Path, vocabulary: int, steps: int, batch: int) -> None:
    model = GPT(vocabulary)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99))
    first_step = 0.0
    x, y = get_batch(path, batch)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = model(x, y)
        x, y = get_batch(path, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            print(f"iter {step}: loss {loss.item():.4f}", file=sys.stderr)
        first_step = first_step or time.time()
    seconds = time.time() - first_step
    print(json.dumps({"samples_per_second": (steps - 1) * batch / seconds, "first_step_seconds": first_step - BEGAN}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
