"""Run one function on a group of workers by Ray Train, or in this process with Ray never imported."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cluster.session import ClusterError, Resources

R = TypeVar("R")


class WorkersFailed(Exception):
    """The group stopped. `raised`: rank -> the exception of the caller's function; `lost`: rank -> how the process ended."""

    def __init__(self, raised: dict[int, BaseException], lost: dict[int, str]) -> None:
        super().__init__("; ".join([f"worker {rank}: {cause}" for rank, cause in (lost or raised).items()]))
        self.raised, self.lost = raised, lost


def share(resources: Resources, *, workers: int, cpus: int | None, gpus: int | None) -> tuple[int, int]:
    """(CPUs, GPUs) of each of `workers`, defaults filled in. Raises ClusterError with the arithmetic if there can never be so many."""
    each_gpus = gpus if gpus is not None else min(1, resources.gpus // max(workers, 1))
    each_cpus = cpus or max(1, min(resources.cpus // max(workers, 1), resources.node_cpus))
    for kind, each, there in (("CPUs", each_cpus, resources.cpus), ("GPUs", each_gpus, resources.gpus)):
        if workers * each > there:
            raise ClusterError(f"scale.workers={workers} x {each} {kind} = {workers * each}, but the cluster has {there} {kind}")
    return each_cpus, each_gpus


def run_here(worker: Callable[..., R], payload: Any, *, gpus: int | None) -> R:
    """`worker(payload, rank=0, world_size=1, device=…)` in this process."""
    import torch

    device = "cuda" if gpus != 0 and torch.cuda.is_available() else "cpu"
    return worker(payload, rank=0, world_size=1, device=device)


def preload() -> None:
    """Import what `launch` needs: seconds, to be spent while the cluster starts."""
    import ray.train.torch  # noqa: F401


def launch(worker: Callable[..., R], payload: Any, *, workers: int, cpus: int, gpus: int, scratch: Path) -> R:
    """`worker(payload, rank=…, world_size=…, device=…)` on each of a group of processes; the first one's result.

    A torch process group (gloo or nccl) stands around the call. `scratch` is a folder every node reaches, for Ray's own notes.
    Raises WorkersFailed; nothing is retried here, because only the caller can tell a lost machine from a bug.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError

    def run_worker() -> R:
        import ray.train.torch

        context = ray.train.get_context()
        device = str(ray.train.torch.get_device())
        return worker(payload, rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)

    name = uuid.uuid4().hex  # a name of its own each time: Ray resumes a name it has seen, and resuming is the caller's
    trainer = TorchTrainer(
        run_worker,
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
        raise ClusterError(f"Ray Train could not start the workers: {error.controller_failure}") from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


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
