"""The hardware of a worker: set up so that it gives the same bits again, described in one line, and its speed.

Another processor, instruction set or GPU may give other last bits.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

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
    """Seconds spent stepping, apart from evaluating and saving, and the steps they bought."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.first_step = time.time()
        self.steps, self.seconds = 0, 0.0
        self._window = (0, 0.0, 0.0)
        self._data_seconds = 0.0

    def add(self, seconds: float, data_seconds: float) -> None:
        self.steps += 1
        if self.steps == 1:  # the first step also builds kernels and buffers; it is no part of a steady rate
            self.first_step = time.time()
            return
        self.seconds += seconds
        self._data_seconds += data_seconds

    def window(self) -> dict[str, float]:
        """Rates since the last call; nothing before the second step."""
        steps, seconds, data_seconds = self._window
        self._window = (self.steps, self.seconds, self._data_seconds)
        spent = self.seconds - seconds
        if spent <= 0:
            return {}
        counted = self.steps - max(steps, 1)
        return {
            "perf/samples_per_second": counted * self._batch / spent,
            "perf/data_wait": (self._data_seconds - data_seconds) / spent,
        }

    @property
    def samples_per_second(self) -> float | None:
        return (self.steps - 1) * self._batch / self.seconds if self.seconds else None


def _processor() -> str:
    told = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
