"""Run one function on a group of workers by Ray Train, or in this process with Ray never imported."""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster.gpus import check_shared
from cluster.nodes import fits
from cluster.session import ClusterError, Resources

R = TypeVar("R")
_STREAM = "train"
_SHUFFLED_BATCHES = 16


class WorkersFailed(Exception):
    """The group stopped. `raised`: rank -> the exception of the caller's function; `lost`: rank -> how the process ended."""

    def __init__(self, raised: dict[int, BaseException], lost: dict[int, str]) -> None:
        super().__init__("; ".join([f"worker {rank}: {cause}" for rank, cause in (lost or raised).items()]))
        self.raised, self.lost = raised, lost


class NotStarted(Exception):
    """The workers found no place on the cluster in time, or it was gone when they came; nothing was run."""


def share(
    resources: Resources, *, workers: int, cpus: int | None, gpus: float | None, least: int | None = None, spare: int = 0
) -> tuple[int, float]:
    """(CPUs, GPUs) of each of `workers`, defaults filled in; `spare` CPUs are left to others. By default a worker has as many CPUs as it
    can, all of them being on nodes.

    Raises ClusterError with the arithmetic if there can never be so many, or where `least` will do, so many; and where they could not be
    joined.
    """
    least = workers if least is None else least
    each_gpus: float = gpus if gpus is not None else min(1, resources.gpus // max(least, 1))
    check_shared(workers=workers, gpus=each_gpus)
    nodes = resources.nodes or ((resources.cpus, resources.gpus),)
    each_cpus = cpus or _widest(nodes, resources, max(workers, 1), each_gpus, spare)
    for kind, each, there, left in (("CPU", each_cpus, resources.cpus, spare), ("GPU", each_gpus, resources.gpus, 0)):
        if least * each + left > there:
            asked = f"scale.workers={least} x {_counted(each, kind)}" + (f" + {left} to read data with" if left else "")
            raise ClusterError(f"{asked} = {least * each + left:g}, but the cluster has {_counted(there, kind)}")
    if (places := fits(nodes, cpus=each_cpus, gpus=each_gpus)) < least:
        each_node = ", ".join(_each(*node) for node in nodes)
        raise ClusterError(f"scale.workers={least} x {_each(each_cpus, each_gpus)}: nodes of {each_node} have room for {places} of them")
    return each_cpus, each_gpus


def _widest(nodes: Sequence[tuple[int, int]], resources: Resources, workers: int, gpus: float, spare: int) -> int:
    """The most CPUs that each of `workers` can have, or 1 if they do not all fit even so."""
    most = max(1, min((resources.cpus - spare) // workers, resources.node_cpus))
    return next((cpus for cpus in range(most, 1, -1) if fits(nodes, cpus=cpus, gpus=gpus) >= workers), 1)


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
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    def run_worker() -> R:
        import ray.train.torch

        context = ray.train.get_context()
        device = str(ray.train.torch.get_device())
        given = {"stream": functools.partial(_epoch, ray.train.get_dataset_shard(_STREAM))} if stream is not None else {}
        return worker(payload, rank=context.get_world_rank(), world_size=context.get_world_size(), device=device, **given)

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience_seconds)  # Ray Train's controller is given it from here
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
        return trainer.fit().return_value
    except WorkerGroupError as error:
        raise _failure(error.worker_failures) from error
    except ControllerError as error:
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise NotStarted(f"no room yet for {workers} worker{'s' * (workers != 1)} x {_each(cpus, gpus)}; still waiting") from error
        raise ClusterError(f"Ray Train could not start the workers: {error.controller_failure}") from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


def _each(cpus: int, gpus: float) -> str:
    return _counted(cpus, "CPU") + (f" and {_counted(gpus, 'GPU')}" if gpus else "")


def _counted(number: float, kind: str) -> str:
    return f"{number:g} {kind}{'s' * (number != 1)}"


def _epoch(shard: Any, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    shuffled = {"local_shuffle_buffer_size": _SHUFFLED_BATCHES * rows, "local_shuffle_seed": seed % 2**32}
    yield from shard.iter_batches(batch_size=rows, batch_format="numpy", drop_last=True, prefetch_batches=2, **shuffled)


def _failure(failures: dict[int, Exception]) -> WorkersFailed:
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback

    raised: dict[int, BaseException] = {}
    lost: dict[int, str] = {}
    for rank, failure in failures.items():
        if isinstance(failure, UserExceptionWithTraceback):
            failure = failure._base_exc
        if isinstance(failure, (RayError, RayTrainError)):  # the process or its node is gone, or never came up
            lost[rank] = "its process died"
        else:
            raised[rank] = failure
    return WorkersFailed(raised, lost)
