"""One worker in this process."""

from __future__ import annotations

from cluster.ray_train import run_here


def tell(payload, *, rank, world_size, device):
    return payload, rank, world_size, device


def test_without_workers_the_function_is_called_here():
    assert run_here(tell, "x", gpus=0) == ("x", 0, 1, "cpu")
