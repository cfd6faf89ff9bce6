"""What a worker computes on, in one line: another processor, instruction set or GPU may give other last bits."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def hardware(device: torch.device) -> str:
    """The processor, the instructions that torch uses of it, the cores this process may use, and the GPU if it is on one."""
    parts = [_processor(), torch.backends.cpu.get_cpu_capability(), f"{len(os.sched_getaffinity(0))} cores"]
    return ", ".join([*parts, torch.cuda.get_device_name(device)] if device.type == "cuda" else parts)


def _processor() -> str:
    told = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
