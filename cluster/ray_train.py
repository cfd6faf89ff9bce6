"""Run one function on a group of workers by Ray Train, or in this process with Ray never imported."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cluster import ClusterError, ray_internals
from cluster.capacity import amounts

R = TypeVar("R")
_STREAM = "train"
_SHUFFLED_BATCHES = 16
_END_SECONDS, _LOOK_SECONDS = 20.0, 0.05


class WorkersFailed(Exception):
    """The group stopped. `raised`: rank -> the exception of the caller's function; `lost`: rank -> how the process ended."""

    def __init__(self, raised: dict[int, BaseException], lost: dict[int, str]) -> None:
        super().__init__("; ".join([f"worker {rank}: {cause}" for rank, cause in (lost or raised).items()]))
        self.raised, self.lost = raised, lost


class NotStarted(Exception):
    """The workers found no place on the cluster in time, or it was gone when they came; nothing was run."""


def run_here(worker: Callable[..., R], payload: Any, *, gpus: float | None) -> R:
    """`worker(payload, rank=0, world_size=1, device=…)` in this process."""
    import torch

    device = "cuda" if gpus != 0 and torch.cuda.is_available() else "cpu"
    return worker(payload, rank=0, world_size=1, device=device)


def preload() -> None:
    """Import what `launch` needs: seconds, to be spent while the cluster starts."""
    import ray.train.torch  # noqa: F401


def launch(
    worker: Callable[..., R],
    payload: Any,
    *,
    workers: int,
    cpus: int,
    gpus: float,
    scratch: Path,
    stream: Any = None,
    patience_seconds: float = 60,
) -> R:
    """`worker(payload, rank=…, world_size=…, device=…)` on each of a group of processes; the first one's result.

    With `stream`, a dataset of cluster.ray_data, each is also given `stream=`: `stream(rows, seed)` goes through its equal share of the
    dataset in whole batches of so many rows, roughly shuffled.

    A torch process group (gloo or nccl) stands around the call. `scratch` is a folder every node reaches, for Ray's own notes.
    Raises WorkersFailed, and NotStarted where they find no place for `patience_seconds`; nothing is retried here, because only the
    caller can tell a lost machine from a bug.
    """
    from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    def run_worker() -> R:
        import ray.train.torch

        context = ray.train.get_context()
        device = str(ray.train.torch.get_device())
        given = {"stream": functools.partial(_epoch, ray.train.get_dataset_shard(_STREAM))} if stream is not None else {}
        return worker(payload, rank=context.get_world_rank(), world_size=context.get_world_size(), device=device, **given)

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience_seconds)  # Ray Train's controller has the driver's environment
    name = uuid.uuid4().hex  # a name of its own each time: Ray resumes a name it has seen, and resuming is the caller's
    trainer = TorchTrainer(
        run_worker,
        datasets=None if stream is None else {_STREAM: stream},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        return _fit(trainer).return_value
    except WorkerGroupError as error:
        causes = {rank: ray_internals.raised_by_worker(failure) for rank, failure in error.worker_failures.items()}
        raised = {rank: cause for rank, cause in causes.items() if cause is not None}
        raise WorkersFailed(raised, {rank: "its process died" for rank in causes if rank not in raised}) from error
    except ControllerError as error:
        if ray_internals.start_timed_out(error.controller_failure):
            raise NotStarted(f"no room yet for {workers} worker{'s' * (workers != 1)} x {amounts(cpus, gpus)}; still waiting") from error
        raise ClusterError(f"Ray Train could not start the workers: {error.controller_failure}") from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


def _fit(trainer: Any) -> Any:
    """`trainer.fit()`, after which none of its actors lives, whether it returns or raises.

    Ray ends the actors of a training when nobody has a handle of its controller any more (2.60). In the main thread its handler of SIGINT
    keeps one for ever, and so may the traceback of what it raises: the actors that read a stream then went on living, and with them tasks
    that hold CPUs.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        if not isinstance(sys.exception(), (KeyboardInterrupt, SystemExit)):
            _await_end()
    return result


def _await_end() -> None:
    """Wait until the trainings of this process have no living actor; within bounds, and in a thread, as a lost control plane is silent."""

    def look() -> None:
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline and ray_internals.training_actors():
            time.sleep(_LOOK_SECONDS)

    looking = threading.Thread(target=look, name="end of training", daemon=True)
    looking.start()
    looking.join(_END_SECONDS)


def _epoch(shard: Any, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    shuffled = {"local_shuffle_buffer_size": _SHUFFLED_BATCHES * rows, "local_shuffle_seed": seed % 2**32}
    yield from shard.iter_batches(batch_size=rows, batch_format="numpy", drop_last=True, prefetch_batches=2, **shuffled)
