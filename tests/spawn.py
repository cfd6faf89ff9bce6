"""Real worker processes joined by gloo, as Ray Train joins them, without Ray.

They are forked from a server that has imported torch and trained nothing: importing anew in each would be most of the tests' time.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests import forked


def together(task: Callable[[int, int], Any], *, world_size: int, scratch: Path) -> list[Any]:
    """`task(rank, world_size)` in `world_size` fresh processes with a process group around; the results by rank.

    `task` must be picklable: a module's function or a functools.partial of one.
    """
    scratch.mkdir(parents=True)
    forked.context()
    start_processes(_run, (task, world_size, scratch), nprocs=world_size, start_method="forkserver")
    return [pickle.loads((scratch / f"{rank}.pickle").read_bytes()) for rank in range(world_size)]  # noqa: S301 (written by ourselves)


def _run(rank: int, task: Callable[[int, int], Any], world_size: int, scratch: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(scratch / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    result = task(rank, world_size)
    (scratch / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
