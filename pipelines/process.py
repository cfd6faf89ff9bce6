"""This process: its hardware, work in a background thread, and how often Python looks for cyclic garbage.

Another processor, instruction set or GPU may give other last bits, so a run keeps its hardware in one line.

torch, Ray and MLflow make a million objects as they are imported, none of them garbage, and Python would look through them again and
again: a third of the time that importing takes (Python 3.11).
"""

from __future__ import annotations

import gc
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # else imported where it is used: every command imports this module
    import torch

R = TypeVar("R")
_USUAL = gc.get_threshold()
_RARE = 500_000
_CPUINFO = Path("/proc/cpuinfo")


def collect_rarely() -> None:
    """Look for cyclic garbage only after half a million new objects: while modules are imported."""
    gc.set_threshold(_RARE, *_USUAL[1:])


def collect_as_usual() -> None:
    """Look for cyclic garbage as Python does: a network's own cycles may hold memory of its device. What is there now is taken to stay."""
    if not gc.get_freeze_count():  # once: a network that is frozen with the rest would never be freed
        gc.freeze()
    gc.set_threshold(*_USUAL)


def in_background(function: Callable[[], R]) -> Future[R]:
    """Call `function` in a daemon thread, for which nobody waits when the program ends: Ctrl-C must reach the caller, and not wait."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=getattr(function, "__name__", "background"), daemon=True).start()
    return future


def settle(device: torch.device) -> torch.device:
    """`device`, this thread's own from here on, with the algorithms that add in the same order each time.

    Nothing is asked of a CPU. On a GPU the usual ones of convolutions, embeddings and matrix products need not repeat their bits (torch's
    notes on reproducibility), and a resumed run would not be an undisturbed one. An operation that has no such algorithm warns.
    """
    import torch

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
    import torch

    parts = [_processor(), torch.backends.cpu.get_cpu_capability(), f"{len(os.sched_getaffinity(0))} cores"]
    return ", ".join([*parts, torch.cuda.get_device_name(device)] if device.type == "cuda" else parts)


def _processor() -> str:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
