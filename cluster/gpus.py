"""May the workers of one group share a GPU?"""

from __future__ import annotations

from cluster.errors import ClusterError


def check_shared(*, workers: int, gpus: float) -> None:
    """Raises ClusterError where two of `workers`, of so many GPUs each, could be on one GPU.

    Ray Train joins workers that have a GPU by NCCL, whatever their share of one (ray.train.torch.config, 2.60), and NCCL refuses a second
    rank on a device ("Duplicate GPU detected") when the first sum is taken, in the middle of the start. Trials of one worker may share.
    """
    if workers > 1 and 0 < gpus <= 0.5:
        raise ClusterError(
            f"scale.workers={workers!r} x scale.gpus={gpus:g}: two workers of a run cannot share a GPU, for NCCL joins one a GPU; "
            f"write scale.gpus=1, or scale.workers=1 scale.gpus={gpus:g}"
        )
