"""Small real runs: a recipe, its prepared dataset, its folder, and what a worker makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines import config
from pipelines.data import preparation
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.training import checkpoint
from pipelines.training.job import Job, Outcome
from pipelines.training.worker import work


def load(storage: Path, *overrides: str, recipe: str = "cnn") -> Run:
    return config.load(recipe, [f"storage={storage}", *overrides]).run


def job(storage: Path, folder: Path, *overrides: str, recipe: str = "cnn") -> Job:
    """The job of a run whose dataset lies in `storage` (prepared once) and whose checkpoints and journal lie in `folder`."""
    run = load(storage, *overrides, recipe=recipe)
    plan = preparation.plan(run)
    preparation.prepare(run, plan, preparation.in_process)
    folder.mkdir(parents=True, exist_ok=True)
    return Job(run, RunFolder(folder), plan.store, plan.fingerprint, run.identity(plan.fingerprint), threads=1)


def alone(each: Job) -> Outcome:
    """The job done by one worker, in this process."""
    return work(each, rank=0, world_size=1, device="cpu")


def copy_as_of(source: Path, target: Path, step: int) -> None:
    """Copy a run's folder as a kill after the checkpoint of `step` would have left it, later points in the journal included."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    assert checkpoint.path_of(target / "checkpoints", step).is_dir()


def final_files(folder: Path, step: int) -> dict[str, bytes]:
    """Every byte of the state that the checkpoint of `step` holds: weights, buffers, optimizer, step number."""
    path = checkpoint.path_of(folder / "checkpoints", step)
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def losses(folder: Path) -> list[float]:
    """The training loss of each step, from the journal's text."""
    entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [entry["metrics"]["loss"] for entry in entries if "loss" in entry["metrics"]]
