"""The worker group: what each worker gets, and how its end is told."""

from __future__ import annotations

import os

import pytest
import torch

from cluster.session import ALLOCATOR, ClusterError, Resources
from cluster.workers import WorkersFailed, launch, run_here, share


@pytest.mark.parametrize(
    ("there", "asked", "given"),
    [
        (Resources(cpus=2, gpus=0, node_cpus=2), {"workers": 1}, (2, 0)),
        (Resources(cpus=2, gpus=0, node_cpus=2), {"workers": 2}, (1, 0)),
        (Resources(cpus=64, gpus=8, node_cpus=16), {"workers": 2}, (16, 1)),
        (Resources(cpus=64, gpus=8, node_cpus=16), {"workers": 8, "cpus": 4, "gpus": 0}, (4, 0)),
        (Resources(cpus=2, gpus=0, node_cpus=2), {"workers": 0}, (2, 0)),
    ],
)
def test_a_worker_gets_an_equal_share(there, asked, given):
    assert share(there, **({"cpus": None, "gpus": None} | asked)) == given


def test_a_group_that_can_never_be_is_refused_with_the_arithmetic():
    with pytest.raises(ClusterError, match=r"scale.workers=4 x 1 CPUs = 4, but the cluster has 2 CPUs"):
        share(Resources(cpus=2, gpus=0, node_cpus=2), workers=4, cpus=None, gpus=None)
    with pytest.raises(ClusterError, match=r"scale.workers=2 x 1 GPUs = 2, but the cluster has 1 GPUs"):
        share(Resources(cpus=8, gpus=1, node_cpus=8), workers=2, cpus=None, gpus=1)


def tell(payload, *, rank, world_size, device):
    return {
        "payload": payload,
        "rank": rank,
        "world_size": world_size,
        "device": device,
        "threads": torch.get_num_threads(),
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
        "niceness": os.nice(0),
    }


def fail(payload, *, rank, world_size, device):
    raise LookupError(f"rank {rank} of {world_size} cannot find {payload}")


def test_without_workers_the_function_is_called_here():
    told = run_here(tell, "x", gpus=None)
    assert (told["payload"], told["rank"], told["world_size"]) == ("x", 0, 1)


def test_a_ray_worker_has_its_threads_and_the_allocators_settings(ray_cluster, tmp_path):
    told = launch(tell, "x", workers=1, cpus=2, gpus=0, scratch=tmp_path)
    assert told == {
        "payload": "x",
        "rank": 0,
        "world_size": 1,
        "device": "cpu",
        "threads": 2,
        "allocator": ALLOCATOR,
        "niceness": 0,
    }
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_raises_is_told_apart_from_its_death(ray_cluster, tmp_path):
    with pytest.raises(WorkersFailed) as failed:
        launch(fail, "x", workers=1, cpus=1, gpus=0, scratch=tmp_path)
    assert failed.value.lost == {}
    assert isinstance(failed.value.raised[0], LookupError)
    assert str(failed.value.raised[0]) == "rank 0 of 1 cannot find x"
