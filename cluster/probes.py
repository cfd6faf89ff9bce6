"""What a node is asked: functions that run there, each by itself, of the standard library and what it imports inside.

A node may have none of this repository, so they travel by value (cluster.ask_nodes), and give back plain values.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.ray_internals import session_folder

_PACKAGES = ("ray", "torch")
_AGAIN_SECONDS = 0.25
_GPUS = "/proc/driver/nvidia/gpus"


def facts(storage: str, package: str) -> dict[str, Any]:
    """Versions, cores, GPUs, whether `package` can be imported, and bytes (free, of all) of the disks it will use."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        found = importlib.util.find_spec(name)
        versions[name] = importlib.metadata.version(name) if found and found.origin else ""
    return {
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "gpus": len(os.listdir(_GPUS)) if os.path.isdir(_GPUS) else 0,
        "package": importlib.util.find_spec(package) is not None,
        "disks": {"storage": _free(storage), "ray": _free(session_folder()), "shm": _free("/dev/shm")},
    }


def now() -> float:
    """The node's clock, in seconds since 1970."""
    return time.time()


def answers(folder: str, said: str, reply: str, text: str, seconds: float) -> str:
    """Wait until the file `said` in `folder` has `text`, then write it into `reply` beside it. What is wrong after `seconds`, or ''.

    A folder of NFS is listed first at each look: else a client may remember for a minute that the file was not there.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.listdir(folder)
            wrong = "" if Path(folder, said).read_text() == text else "another file stands there"
        except OSError as error:
            wrong = f"what the driver writes is not seen there ({error.strerror})"
        if not wrong or time.monotonic() > deadline:
            break
        time.sleep(_AGAIN_SECONDS)
    if wrong:
        return wrong
    try:
        Path(folder, reply).write_text(text)
    except OSError as error:
        return f"what the driver writes is seen there, but nothing can be written ({error.strerror})"
    return ""


def reaches(url: str, seconds: float) -> str:
    """What is wrong with the server at `url` as seen from here, or ''. That it refuses who has not logged in shows that it is there."""
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return f"error {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


def free_port() -> int:
    """A port that nobody has now."""
    import socket

    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def sums(meeting: str, rank: int, world_size: int, backend: str, sizes: tuple[int, ...], times: int, seconds: float) -> list[float]:
    """Meet the others at `meeting` (tcp://host:port) and add up with them: the median seconds of an all-reduce of each of `sizes` bytes.

    Raises ArithmeticError if the sum is wrong, and what torch.distributed raises.
    """
    import datetime

    import torch
    import torch.distributed as group

    group.init_process_group(backend, init_method=meeting, rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=seconds))
    try:
        medians = []
        for size in sizes:
            numbers = torch.ones(size // 4, device="cuda" if backend == "nccl" else "cpu")
            took = []
            for _ in range(1 + times):
                numbers.fill_(rank + 1.0)
                group.barrier()
                began = time.perf_counter()
                group.all_reduce(numbers)
                last = float(numbers[-1])  # waits for a GPU
                took.append(time.perf_counter() - began)
                if last != world_size * (world_size + 1) / 2:
                    raise ArithmeticError(f"the sum of 1 to {world_size} came out as {last:g}")
            medians.append(statistics.median(took[1:]))
        return medians
    finally:
        group.destroy_process_group()


def _free(path: str) -> tuple[int, int] | None:
    """Bytes (free, of all) of the disk that `path` is or will be on."""
    there = Path(path)
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        found = shutil.disk_usage(there)
    except OSError:
        return None
    return found.free, found.total
