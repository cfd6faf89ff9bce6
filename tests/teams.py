"""One short run by N worker processes, undisturbed, and once more from its checkpoint of step 2, as after a kill."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.training.job import Job, Outcome
from pipelines.training.parallel import Group
from pipelines.training.worker import work
from tests import runs, spawn

STEPS, RESUMED_FROM = 6, 2
BATCH, MICRO_BATCH = 33, 5  # 7 micro-batches: divided evenly by neither 2 nor 3 workers
SPLITS = ("data.splits.train=0.976", "data.splits.validation=0.012", "data.splits.test=0.012")  # few rows to score: that was half the time
OVERRIDES = (
    f"train.steps={STEPS}",
    f"train.batch={BATCH}",
    f"train.micro_batch={MICRO_BATCH}",
    "optim.warmup=2",  # so few steps would all be of the warm-up
    f"train.checkpoint_every={RESUMED_FROM}",
    "train.keep=10",
    "train.log_every=1",
    *SPLITS,
)
GATHERED = 8  # rows of the gathering check: no multiple of 3


class TeamRun:
    """What came of the run undisturbed; `resumed` is trained when it is asked for."""

    def __init__(self, recipe: str, world_size: int, storage: Path, folder: Path, settings: Sequence[str] = ()) -> None:
        self._world_size, self._folder = world_size, folder
        job = runs.job(storage, folder / "whole", *OVERRIDES, *settings, recipe=recipe)
        self._twin = runs.job(storage, folder / "resumed" / "run", *OVERRIDES, *settings, recipe=recipe)
        self._twin.folder.path.rmdir()
        self.dataset, self.whole = job.store.folder(job.fingerprint), job.folder.path
        self.outcome, self.gathered = _team(world_size, folder, "undisturbed", job)

    @property
    def resumed(self) -> Path:
        return self.resumed_outcome and self._twin.folder.path

    @functools.cached_property
    def resumed_outcome(self) -> Outcome:
        runs.copy_as_of(self.whole, self._twin.folder.path, RESUMED_FROM)
        return _team(self._world_size, self._folder, "resumed", self._twin)[0]


def _team(world_size: int, folder: Path, name: str, job: Job) -> tuple[Outcome, list[torch.Tensor]]:
    """The job done by so many processes, which are new ones each time, as those that resume a run are."""
    task = functools.partial(_work, job=job)
    told = [_work(0, 1, job=job)] if world_size == 1 else spawn.together(task, world_size=world_size, scratch=folder / f"{name}-scratch")
    return told[0][0], [gathered for _, gathered in told]


def _work(rank: int, world_size: int, *, job: Job) -> tuple[Outcome, torch.Tensor]:
    outcome = work(job, rank=rank, world_size=world_size, device="cpu")
    mine = torch.arange(rank, GATHERED, world_size).unsqueeze(1) * torch.tensor([[1, 10]])
    return outcome, Group(rank, world_size, torch.device("cpu")).gather_strided(mine, GATHERED)
