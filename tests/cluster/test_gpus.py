"""Workers of one group are joined by NCCL, which takes one of them a GPU."""

from __future__ import annotations

import pytest

from cluster.capacity import room
from cluster.errors import ClusterError
from cluster.gpus import check_shared
from cluster.ray_train import share
from cluster.session import Resources

BOX = Resources(cpus=8, gpus=2, node_cpus=8)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.25), (0, 0.5), (4, 0), (2, 1), (2, 2), (2, 0.6)])
def test_who_has_a_gpu_of_its_own_or_is_alone_may_be(workers, gpus):
    check_shared(workers=workers, gpus=gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(2, 0.5), (2, 0.1), (8, 0.25)])
def test_two_that_could_be_on_one_gpu_are_refused_with_what_would_do(workers, gpus):
    with pytest.raises(ClusterError) as refused:
        check_shared(workers=workers, gpus=gpus)
    assert f"scale.workers={workers} x scale.gpus={gpus}: two workers of a run cannot share a GPU" in str(refused.value)
    assert "write scale.gpus=1, or scale.workers=1" in str(refused.value)


def test_a_run_and_a_trial_are_refused_before_they_start():
    with pytest.raises(ClusterError, match="cannot share a GPU"):
        share(BOX, workers=2, cpus=1, gpus=0.5)
    with pytest.raises(ClusterError, match="cannot share a GPU"):
        room(BOX, workers=2, cpus=1, gpus=0.5)
    assert room(BOX, workers=1, cpus=1, gpus=0.5).at_once == 4
