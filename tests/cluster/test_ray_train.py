"""The worker group: what each worker gets."""

from __future__ import annotations

import pytest

from cluster.ray_train import run_here, share
from cluster.session import ClusterError, Resources


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
    with pytest.raises(ClusterError, match=r"scale.workers=4 x 1 CPU = 4, but the cluster has 2 CPUs"):
        share(Resources(cpus=2, gpus=0, node_cpus=2), workers=4, cpus=None, gpus=None)
    with pytest.raises(ClusterError, match=r"scale.workers=2 x 1 GPU = 2, but the cluster has 1 GPU$"):
        share(Resources(cpus=8, gpus=1, node_cpus=8), workers=2, cpus=None, gpus=1)


def test_cpus_to_read_with_are_left_where_data_are_streamed():
    assert share(Resources(cpus=8, gpus=0, node_cpus=8), workers=2, cpus=None, gpus=None, spare=1) == (3, 0)
    with pytest.raises(ClusterError, match=r"scale.workers=2 x 1 CPU \+ 1 to read data with = 3, but the cluster has 2 CPUs"):
        share(Resources(cpus=2, gpus=0, node_cpus=2), workers=2, cpus=None, gpus=None, spare=1)


def tell(payload, *, rank, world_size, device):
    return payload, rank, world_size, device


def test_without_workers_the_function_is_called_here():
    assert run_here(tell, "x", gpus=0) == ("x", 0, 1, "cpu")
