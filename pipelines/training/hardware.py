"""The hardware of a worker: set up so that it gives the same bits again, described in one line, and its speed.

Another processor, instruction set or GPU may give other last bits.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

_CPUINFO = Path("/proc/cpuinfo")


def settle(device: torch.device) -> torch.device:
    """`device`, this thread's own from here on, with the algorithms that add in the same order each time.

    Nothing is asked of a CPU. On a GPU the usual ones of convolutions, embeddings and matrix products need not repeat their bits (torch's
    notes on reproducibility), and a resumed run would not be an undisturbed one. An operation that has no such algorithm warns.
    """
    if device.type != "cuda":
        return device
    # cuBLAS reads it when the first matrix product is computed, which is later than this
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(device if device.index is not None else torch.cuda.current_device())
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # it is for finding bugs, and writes every new tensor once more
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda", torch.cuda.current_device())


def hardware(device: torch.device) -> str:
    """The processor, the instructions that torch uses of it, the cores this process may use, and the GPU if it is on one."""
    parts = [_processor(), torch.backends.cpu.get_cpu_capability(), f"{len(os.sched_getaffinity(0))} cores"]
    return ", ".join([*parts, torch.cuda.get_device_name(device)] if device.type == "cuda" else parts)


class Timing:
    """Steps and their seconds, evaluating and saving left out. The first step, which also builds kernels and buffers, is not counted."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._begun = False
        self.first_step = time.time()
        self._total = self._reported = np.zeros(3)  # steps, seconds, seconds of waiting for data

    def add(self, seconds: float, data_seconds: float) -> None:
        if self._begun:
            self._total = np.add(self._total, (1, seconds, data_seconds))
        else:
            self._begun, self.first_step = True, time.time()

    def window(self) -> dict[str, float]:
        """Rates since the last call; nothing before the second step."""
        steps, seconds, data_seconds = (self._total - self._reported).tolist()
        self._reported = self._total
        return {"perf/samples_per_second": steps * self._batch / seconds, "perf/data_wait": data_seconds / seconds} if seconds else {}

    @property
    def samples_per_second(self) -> float | None:
        steps, seconds, _ = self._total.tolist()
        return steps * self._batch / seconds if seconds else None


def _processor() -> str:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
