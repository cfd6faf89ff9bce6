"""Workers that hold a part of the network each train the one that is whole on each, and what they store is the same."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines import config
from pipelines.errors import Diverged
from pipelines.settings import Optim
from pipelines.training import checkpoint, loop
from pipelines.training.job import Job
from pipelines.training.optim import make_optimizer
from pipelines.training.sharding import Sharded, blocks, full_tensor, group_of, local_part
from pipelines.training.worker import predictions, validate, work
from tests import runs, spawn
from tests.teams import RESUMED_FROM, STEPS, TeamRun
from workloads.base import Mean

TeamRuns = Callable[..., TeamRun]
CPU = torch.device("cpu")
STRICT = ("model.dropout=0.1", "model.word_dropout=0.1", "optim.clip=0.5")  # all that randomness and the whole gradient can do
FSDP = "scale.strategy=fsdp"


def names(model: nn.Module) -> list[str]:
    found = {id(part): name for name, part in model.named_modules()}
    return [found[id(part)] for part in blocks(model)]


# what is gathered at a time


def test_the_members_of_lists_are_gathered_one_at_a_time_and_theirs_with_them() -> None:
    model = nn.Module()
    model.embedding = nn.Embedding(5, 4)
    model.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(2))
    model.inner = nn.Module()
    model.inner.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))
    assert names(model) == ["layers.0", "layers.1", "inner.head.0", "inner.head.2.0"]


def test_what_shares_a_weight_with_another_part_stays_with_the_root() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert names(model) == ["3"]


def test_a_part_may_share_weights_with_itself() -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    holder = nn.Module()
    holder.inner = tied
    assert names(nn.ModuleList([holder])) == ["0"]


def test_one_worker_alone_shares_nothing_out() -> None:
    group = group_of("fsdp", 0, 1, CPU)
    assert not group.sharded
    assert not isinstance(group, Sharded)


# the same curve, the same bits again


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_curve_is_that_of_whole_networks(team_run: TeamRuns, workers: int) -> None:
    whole_networks = team_run("transformer", 2, *STRICT)
    parts = team_run("transformer", workers, *STRICT, FSDP)
    curve = runs.losses(parts.whole)
    assert curve == pytest.approx(runs.losses(whole_networks.whole), abs=1e-5)
    assert curve == pytest.approx(runs.losses(team_run("transformer", 1, *STRICT).whole), abs=1e-5)
    assert len(curve) == STEPS


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_team_ends_with_the_bits_of_an_undisturbed_one(team_run: TeamRuns, workers: int, strategy: str) -> None:
    run = team_run("transformer", workers, *STRICT, *([FSDP] if strategy == "fsdp" else []))
    assert run.resumed_outcome.resumed_from_step == RESUMED_FROM
    assert runs.final_files(run.resumed, STEPS) == runs.final_files(run.whole, STEPS)
    assert run.resumed_outcome.weights_sha256 == run.outcome.weights_sha256
    assert (run.resumed / "journal.jsonl").read_bytes() == (run.whole / "journal.jsonl").read_bytes()


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_test_row_is_scored_once(team_run: TeamRuns, workers: int) -> None:
    one, team = team_run("transformer", 1, *STRICT).outcome, team_run("transformer", workers, *STRICT, FSDP).outcome
    assert team.metrics == pytest.approx(one.metrics, abs=1e-5)
    np.testing.assert_allclose(team.outputs["probabilities"], one.outputs["probabilities"], atol=1e-5)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_parts_have_stored_is_gone_on_with_by_one_worker(team_run: TeamRuns, storage: Path, tmp_path: Path, workers: int) -> None:
    parts = team_run("transformer", workers, *STRICT, FSDP)
    job = runs.job(storage, tmp_path / "alone", *team_settings(), *STRICT, recipe="transformer")
    job.folder.path.rmdir()
    runs.copy_as_of(parts.whole, tmp_path / "alone", RESUMED_FROM)
    (tmp_path / "alone" / "journal.jsonl").unlink()
    outcome = runs.alone(job)
    assert outcome.resumed_from_step == RESUMED_FROM
    assert runs.losses(tmp_path / "alone") == pytest.approx(runs.losses(parts.whole)[RESUMED_FROM:], abs=1e-5)


def team_settings() -> tuple[str, ...]:
    from tests.teams import OVERRIDES

    return OVERRIDES


def in_turn(rank: int, world_size: int, *, jobs: list[Job]) -> str:
    for job in jobs:
        outcome = work(job, rank=rank, world_size=world_size, device="cpu")
    return outcome.weights_sha256


@pytest.mark.long
def test_the_strategy_may_change_in_mid_run_and_back(team_run: TeamRuns, storage: Path, tmp_path: Path) -> None:
    def stopping(strategy: str, step: int | None) -> Job:
        settings = (*team_settings(), *STRICT, f"scale.strategy={strategy}")
        job = runs.job(storage, tmp_path / "run", *settings, recipe="transformer")
        return Job(job.run, job.folder, job.store, job.fingerprint, job.identity, job.threads, step)

    jobs = [stopping("ddp", 1), stopping("fsdp", 3), stopping("ddp", 5), stopping("fsdp", None)]
    hashes = spawn.together(functools.partial(in_turn, jobs=jobs), world_size=2, scratch=tmp_path / "scratch")
    assert runs.losses(tmp_path / "run") == pytest.approx(runs.losses(team_run("transformer", 2, *STRICT).whole), abs=1e-5)
    final = checkpoint.path_of(tmp_path / "run" / "checkpoints", STEPS)
    assert set(hashes) == {checkpoint.promised_sha256(final)}
    assert {path.name for path in final.parent.iterdir()} >= {f"step-{step:08}" for step in (1, 3, 5)}


# a network with a tied weight, weights of fewer rows than workers, and buffers


class Odd(nn.Module):
    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(dropout), nn.Linear(5, 6)) for _ in range(2)])
        self.narrow = nn.Linear(6, 1)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x_B: torch.Tensor) -> torch.Tensor:
        x_BD = self.embedding(x_B)
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        return self.head(x_BD * self.scale) * self.narrow(x_BD).exp()


def odd_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, Mean]:
    return {"loss": Mean(nn.functional.cross_entropy(model(batch["x"]), (batch["x"] + 1) % 7, reduction="sum"), len(batch["x"]))}


def trained_odd(
    rank: int, world_size: int, *, strategy: str, optimizer: str, compiled: bool = False, bf16: bool = False, dropout: float = 0.2
) -> dict[str, Any]:
    """Twenty steps of three micro-batches each, shared out among the workers; what they hold at the end."""
    group = group_of("fsdp" if strategy == "fsdp" else "ddp", rank, world_size, CPU)
    torch.manual_seed(0)
    model = group.place(Odd(dropout))
    state = make_optimizer(model, Optim(name=optimizer))
    share = [number for number in range(3) if number % world_size == rank]

    def batches(step: int) -> Any:
        for number in share:
            yield number, {"x": torch.randint(0, 7, (4,), generator=torch.Generator().manual_seed(10 * step + number))}

    steps = loop.train(
        group.compiled(model) if compiled else model,
        state,
        odd_step,
        batches=batches,
        lr=lambda step: 0.01,
        group=group,
        first=0,
        last=20,
        seed=3,
        clip=0.5,
        bf16=bf16,
        idle=group.idle(len(share), 3),
    )
    losses = [step.means["loss"].value for step in steps]
    held = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    held += [value for moments in state.state.values() for name, value in moments.items() if name != "step"]
    return {
        "losses": losses,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "held": sum(local_part(tensor.detach()).numel() for tensor in held if tensor is not None),
        "weights": {name: full_tensor(tensor.detach()).clone() for name, tensor in model.state_dict().items()},
    }


def together(tmp_path: Path, workers: int, **settings: Any) -> list[dict[str, Any]]:
    task = functools.partial(trained_odd, **settings)
    return spawn.together(task, world_size=workers, scratch=tmp_path / "-".join([str(workers), *map(str, settings.values())]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_tied_and_tiny_weights_are_trained_as_if_whole_and_held_in_parts(tmp_path: Path, optimizer: str) -> None:
    one = trained_odd(0, 1, strategy="ddp", optimizer=optimizer)
    parts = together(tmp_path, 3, strategy="fsdp", optimizer=optimizer)
    for part in parts:
        assert part["losses"] == pytest.approx(one["losses"], abs=1e-5)
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(part["weights"][name], tensor, rtol=0, atol=1e-5)
    assert sum(part["held"] for part in parts) == one["held"]
    assert max(part["held"] for part in parts) < 0.5 * one["held"]
    assert one["losses"][-1] < one["losses"][0]


def test_bf16_trains_the_same_in_parts_and_near_fp32(tmp_path: Path) -> None:
    exact = trained_odd(0, 1, strategy="ddp", optimizer="adamw")["losses"]
    rounded = {strategy: together(tmp_path, 2, strategy=strategy, optimizer="adamw", bf16=True)[0] for strategy in ("ddp", "fsdp")}
    assert rounded["fsdp"]["losses"] == pytest.approx(rounded["ddp"]["losses"], abs=1e-3)
    assert rounded["fsdp"]["losses"] == pytest.approx(exact, rel=0.05)
    assert rounded["fsdp"]["losses"] != pytest.approx(exact, abs=1e-6)
    assert {tensor.dtype for tensor in rounded["fsdp"]["weights"].values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_compiled_network_is_trained_by_a_team(tmp_path: Path, strategy: str) -> None:
    plain = together(tmp_path, 2, strategy=strategy, optimizer="adamw", dropout=0.0)[0]  # inductor draws other masks
    compiled = together(tmp_path, 2, strategy=strategy, optimizer="adamw", dropout=0.0, compiled=True)[0]
    assert compiled["losses"] == pytest.approx(plain["losses"], abs=1e-4)
    assert compiled["graphs"] > plain["graphs"] == 0


# what all must do together


def diverging(rank: int, world_size: int, *, job: Job) -> str:
    try:
        work(job, rank=rank, world_size=world_size, device="cpu")
    except Diverged as error:
        return str(error)
    return "did not"


def test_a_network_that_diverges_stops_all_at_the_same_step(storage: Path, tmp_path: Path) -> None:
    settings = ("scale.workers=2", "train.steps=20", "train.log_every=100", "train.checkpoint_every=1", "optim.name=sgd", "optim.lr=1e30")
    job = runs.job(storage, tmp_path / "run", FSDP, *settings, "optim.warmup=0", recipe="mlp")
    told = spawn.together(functools.partial(diverging, job=job), world_size=2, scratch=tmp_path / "scratch")
    assert told[0] == told[1]
    assert "the weights are no longer finite at step" in told[0]


def one_spoilt(rank: int, world_size: int) -> tuple[bool, bool]:
    group = group_of("fsdp", rank, world_size, CPU)
    model = group.place(Odd())
    if rank:
        local_part(model.embedding.weight.detach())[-1, -1] = float("nan")
    found = loop.finite(model)
    return found, group.all_of(found)


def test_a_number_that_is_not_finite_in_one_workers_part_is_told_to_all(tmp_path: Path) -> None:
    assert spawn.together(one_spoilt, world_size=2, scratch=tmp_path / "scratch") == [(True, False), (False, False)]


class First:
    """The first rows of others."""

    def __init__(self, rows: Any, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def take(self, index: np.ndarray, columns: Any = None) -> dict[str, np.ndarray]:
        return self._rows.take(index, columns)


def scored(rank: int, world_size: int, *, job: Job, rows: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    group = group_of(job.run.scale.strategy, rank, world_size, CPU)
    from pipelines.data import dataset

    data = dataset.proven(job.store, job.fingerprint)
    torch.manual_seed(0)
    encoding = job.run.model.encoding_type.model_validate(data.manifest.encoding)
    model = group.place(job.run.model.network(encoding))
    chosen = First(job.run.model.examples(data.test, training=False), rows)
    judging = job.run.model.judging(encoding)
    return validate(job.run, group, chosen, model, judging), predictions(job.run, group, chosen, model)


@pytest.mark.parametrize("rows", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_fewer_rows_than_workers_are_scored_though_a_network_takes_no_empty_batch(storage: Path, tmp_path: Path, rows: int) -> None:
    small = ("model.layers=1", "model.width=16", "model.heads=2", "model.vocabulary=300", "model.length=8")
    job = runs.job(storage, tmp_path / "run", *small, "train.batch=4", "train.micro_batch=1", FSDP, recipe="bert")
    expected, said = scored(0, 1, job=job, rows=rows)
    for metrics, outputs in spawn.together(functools.partial(scored, job=job, rows=rows), world_size=3, scratch=tmp_path / "scratch"):
        assert metrics == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(outputs["probabilities"], said["probabilities"], atol=1e-5)


@pytest.mark.long
def test_a_text_is_written_by_all_and_is_that_of_whole_networks(team_run: TeamRuns) -> None:
    small = ("model.layers=1", "model.width=32", "model.heads=2", "model.window=16", "model.sample_tokens=12", "model.temperature=0")
    samples = []
    for strategy in ("ddp", "fsdp"):
        folder = team_run("gpt", 2, *small, f"scale.strategy={strategy}").whole
        entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        samples.append([value for entry in entries if (value := entry.get("texts", {}).get("sample"))])
    assert samples[0] == samples[1]
    assert samples[0]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", config.recipes())
def test_every_recipe_is_trained_in_parts(recipe: str, team_run: TeamRuns) -> None:
    run, one = team_run(recipe, 2, FSDP), team_run(recipe, 1)
    assert runs.losses(run.whole) == pytest.approx(runs.losses(one.whole), abs=1e-5)
    assert runs.final_files(run.resumed, STEPS) == runs.final_files(run.whole, STEPS)
    assert run.outcome.metrics == pytest.approx(one.outcome.metrics, abs=1e-5)
