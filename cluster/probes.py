"""Tasks that `doctor` runs on the nodes of a cluster, all at once, and the functions that run there.

A task takes no CPU, so a full cluster answers as soon as an idle one, and each is waited for within bounds: silence is an answer too. A
node that was started by `ray start` may have nothing of this repository, so the functions are pickled by value, use the standard library
and what they import inside, and return plain values.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster import ray_internals
from cluster.nodes import Node
from cluster.ray_internals import session_folder

SIZES = (1 << 20, 64 << 20)
"""Bytes of the all-reduce that is timed."""
_TIMES = 5
_PACKAGES = ("ray", "torch")
_AGAIN_SECONDS = 0.25
_GPUS = "/proc/driver/nvidia/gpus"


Answers = tuple[dict[str, Any], dict[str, str]]
"""Node's id -> its answer, and node's id -> why there is none."""


def ask(
    nodes: Iterable[Node], question: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]] = lambda node: (), *, seconds: float
) -> Answers:
    """`question(*arguments(node))` on each node, all at once, for at most `seconds`."""
    return gather({node.id: send(node, question, *arguments(node)) for node in nodes}, seconds=seconds)


def send(node: Node, question: Callable[..., Any], *arguments: Any, gpus: float = 0, alone: bool = False) -> Any:
    """Start the task of a question on a node; the reference of its answer. `alone`: in a process that ends after it."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for module in (sys.modules[question.__module__], ray_internals):
        cloudpickle.register_pickle_by_value(module)
    on_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, max_calls=int(alone))(question)
    return task.options(scheduling_strategy=on_node, name=f"doctor: {question.__name__}").remote(*arguments)


def gather(references: Mapping[str, Any], *, seconds: float) -> Answers:
    """The answers that come within `seconds`, by name; the others are given up."""
    import ray

    _, late = ray.wait(list(references.values()), num_returns=len(references), timeout=seconds) if references else ([], [])
    answers: dict[str, Any] = {}
    silent: dict[str, str] = {}
    for name, reference in references.items():
        if reference in late:
            silent[name] = f"no answer within {seconds:g} s"
            ray.cancel(reference, force=True)
            continue
        try:
            answers[name] = ray.get(reference)
        except Exception as error:  # what a node raises is an answer: it is reported, and ends nothing here
            cause = getattr(error, "cause", None) or error
            lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
            silent[name] = ": ".join([type(cause).__name__, *lines[:1]])[:300]
    return answers, silent


# ---- what runs on a node


def facts(storage: str, package: str) -> dict[str, Any]:
    """Versions, cores, GPUs, whether `package` can be imported, and bytes (free, of all) of the disks it will use."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        versions[name] = importlib.metadata.version(name) if spec and spec.origin else ""
    return {
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "gpus": len(os.listdir(_GPUS)) if os.path.isdir(_GPUS) else 0,
        "package": importlib.util.find_spec(package) is not None,
        "disks": {"storage": _free(storage), "ray": _free(session_folder()), "shm": _free("/dev/shm")},
    }


def clock() -> float:
    """The node's clock, in seconds since 1970."""
    return time.time()


def sees(folder: str, written: str, reply: str, text: str, seconds: float) -> str:
    """Wait until the file `written` in `folder` has `text`, then write it into `reply` beside it. An error after `seconds`, or ''.

    A folder of NFS is listed first at each look: else a client may remember for a minute that the file was not there.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.listdir(folder)
            error = "" if Path(folder, written).read_text() == text else "another file stands there"
        except OSError as unreadable:
            error = f"what the driver writes is not seen there ({unreadable.strerror})"
        if not error or time.monotonic() > deadline:
            break
        time.sleep(_AGAIN_SECONDS)
    if error:
        return error
    try:
        Path(folder, reply).write_text(text)
    except OSError as unwritable:
        return f"what the driver writes is seen there, but nothing can be written ({unwritable.strerror})"
    return ""


def reaches(url: str, seconds: float) -> str:
    """An error of the server at `url` as seen from this node, or ''. A server that refuses requests without a login is there."""
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return f"error {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""


def free_port() -> int:
    """A port that is free now."""
    import socket

    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def all_reduce(meeting: str, rank: int, world_size: int, backend: str, seconds: float) -> list[float]:
    """Join the others at `meeting` (tcp://host:port): the median seconds of an all-reduce of each of SIZES, as training makes at each step.

    Raises ArithmeticError if the sum is wrong, and what torch.distributed raises.
    """
    import datetime
    import statistics

    import torch
    import torch.distributed as group

    group.init_process_group(backend, init_method=meeting, rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=seconds))
    try:
        medians = []
        for size in SIZES:
            numbers = torch.ones(size // 4, device="cuda" if backend == "nccl" else "cpu")
            took = []
            for _ in range(1 + _TIMES):
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
    try:
        usage = shutil.disk_usage(next(place for place in (Path(path), *Path(path).parents) if place.exists()))
    except OSError:
        return None
    return usage.free, usage.total
