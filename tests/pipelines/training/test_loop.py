"""The loop takes torch's own step on the whole batch, and goes on after a kill as if nothing had happened."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipelines.errors import DIVERGED, Diverged, code_of
from pipelines.settings import Optim
from pipelines.training import checkpoint, loop
from pipelines.training.optim import make_optimizer
from pipelines.training.parallel import Group
from tests import runs
from workloads.base import Mean

ALONE = Group(0, 1, torch.device("cpu"))
ROWS, STEPS = 24, 6


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def plain_network() -> nn.Module:
    """Without batch statistics: those do depend on how a batch is cut."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def batch_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return {"x": torch.randn(ROWS, 5, generator=generator), "y": torch.randint(0, 3, (ROWS,), generator=generator)}


def step_function(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Mean]:
    said = model(batch["x"])
    return {
        "loss": Mean(cross_entropy(said.float(), batch["y"], reduction="sum"), len(batch["y"])),
        "accuracy": Mean((said.argmax(1) == batch["y"]).sum(), len(batch["y"])),
    }


def cut(edges: Sequence[int]) -> Callable[[int], Iterator[tuple[int, dict[str, Tensor]]]]:
    def batches(step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        whole = batch_of(step)
        for number, (start, stop) in enumerate(pairwise(edges)):
            yield number, {name: column[start:stop] for name, column in whole.items()}

    return batches


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    edges: Sequence[int] = (0, ROWS),
    first: int = 0,
    last: int = STEPS,
    lr: Callable[[int], float] = lambda step: 0.01,
    **options: object,
) -> list[loop.Step]:
    optimizer = optimizer or make_optimizer(model, Optim())
    settings = {"group": ALONE, "seed": 7, "first": first, "last": last, "lr": lr} | options
    return list(loop.train(model, optimizer, step_function, batches=cut(edges), **settings))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("edges", [(0, 24), (0, 8, 16, 24), (0, 10, 20, 24), tuple(range(25))])
def test_a_step_is_torchs_own_step_on_the_mean_loss_of_the_whole_batch(edges: tuple[int, ...]) -> None:
    ours = plain_network()
    theirs, means = copy.deepcopy(ours), []
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(theirs(batch_of(step)["x"]), batch_of(step)["y"])
        loss.backward()
        optimizer.step()
        means.append(loss.item())
    sgd = torch.optim.SGD(ours.parameters(), lr=99.0)
    steps = train(ours, sgd, edges=edges, lr=lambda step: 0.1)
    assert [step.means["loss"].value for step in steps] == pytest.approx(means, abs=1e-6)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_steps_are_counted_as_a_checkpoint_would_count_them() -> None:
    assert [step.number for step in train(plain_network(), first=2, last=5)] == [3, 4, 5]


def test_metrics_of_a_step_count_every_row_once() -> None:
    (step,) = train(plain_network(), edges=(0, 10, 24), last=1)
    right = (plain_network()(batch_of(0)["x"]).argmax(1) == batch_of(0)["y"]).sum()
    assert (int(step.means["accuracy"].total), step.means["accuracy"].count) == (int(right), ROWS)


def test_the_rate_of_a_step_is_that_of_its_number() -> None:
    rates = [0.5, 0.0, 0.25]
    model = plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    seen, before = [], weights(model)
    for step in loop.train(
        model, optimizer, step_function, batches=cut((0, ROWS)), group=ALONE, first=0, last=3, seed=0, lr=rates.__getitem__
    ):
        moved = any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        seen.append((step.lr, moved))
        before = weights(model)
    assert seen == [(0.5, True), (0.0, False), (0.25, True)]


def test_the_gradient_is_clipped_as_a_whole_and_after_it_is_divided() -> None:
    model = plain_network()
    before = weights(model)
    expected = copy.deepcopy(model)
    cross_entropy(expected(batch_of(0)["x"]), batch_of(0)["y"]).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in expected.parameters()]).norm().item()
    limit = norm / 3
    train(model, torch.optim.SGD(model.parameters(), lr=1.0), edges=(0, 10, 24), lr=lambda step: 1.0, last=1, clip=limit)
    moved = torch.cat([(before[name] - tensor).flatten() for name, tensor in model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(limit, rel=1e-4)
    train(other := plain_network(), torch.optim.SGD(other.parameters(), lr=1.0), lr=lambda step: 1.0, last=1, clip=norm * 3)
    moved = torch.cat([(before[name] - tensor).flatten() for name, tensor in other.state_dict().items()])
    assert moved.norm().item() == pytest.approx(norm, rel=1e-4)


def test_two_micro_batch_sizes_follow_one_curve() -> None:
    curves = [[step.means["loss"].value for step in train(plain_network(), edges=edges)] for edges in ((0, 24), (0, 7, 14, 21, 24))]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_dropout_is_another_in_each_micro_batch_and_the_same_when_repeated() -> None:
    def masks(seed: int) -> list[tuple[bool, ...]]:
        seen: list[tuple[bool, ...]] = []

        def look(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Mean]:
            seen.append(tuple((model[0](torch.ones(64)) == 0).tolist()))
            return step_function(model[1], batch)

        model = nn.Sequential(nn.Dropout(0.5), plain_network())
        optimizer = make_optimizer(model, Optim())
        list(loop.train(model, optimizer, look, batches=cut((0, 12, 24)), lr=lambda step: 0.01, group=ALONE, first=0, last=2, seed=seed))
        return seen

    assert masks(1) == masks(1)
    assert len({*masks(1), *masks(2)}) == 8


def test_evaluation_is_without_dropout_and_gives_back_a_model_that_trains() -> None:
    model = network(dropout=0.9)
    before = weights(model)
    whole = loop.evaluate(model, step_function, [batch_of(0)], group=ALONE)
    parts = loop.evaluate(model, step_function, [batch for _, batch in cut((0, 5, 24))(0)], group=ALONE)
    model.eval()
    assert whole["loss"] == pytest.approx(cross_entropy(model(batch_of(0)["x"]), batch_of(0)["y"]).item(), abs=1e-6)
    assert whole == pytest.approx(parts, abs=1e-6)
    model.train()
    loop.evaluate(model, step_function, [batch_of(0)], group=ALONE)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_bf16_stays_near_fp32_and_keeps_its_weights_in_fp32() -> None:
    curves = {}
    for bf16 in (False, True):
        model = plain_network()
        curves[bf16] = [step.means["loss"].value for step in train(model, bf16=bf16)]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert curves[True] == pytest.approx(curves[False], abs=0.02)
    assert curves[True] != curves[False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_found(value: float) -> None:
    model = plain_network()
    assert loop.finite(model)
    with torch.no_grad():
        model[0].weight[3, 2] = value
    assert not loop.finite(model)


def test_large_but_finite_weights_are_finite() -> None:
    model = plain_network()
    with torch.no_grad():
        model[0].weight[0] = 1e30
    assert loop.finite(model)


def test_seeds_are_mixed_apart() -> None:
    seeds = {loop.mix(seed, step, part) for seed in range(10) for step in range(20) for part in range(5)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


# what a resumed run must be: the same state, to the last bit

State = tuple[nn.Module, torch.optim.Optimizer]


def fresh(dropout: float = 0.3) -> State:
    model = network(dropout)
    return model, make_optimizer(model, Optim(weight_decay=0.1))


def digest(state: State) -> list[bytes]:
    model, optimizer = state
    moments = optimizer.state_dict()["state"]
    parts = [moments[place][name] for place in sorted(moments) for name in sorted(moments[place])]
    return [tensor.numpy().tobytes() for tensor in [*model.state_dict().values(), *parts]]


def rate(step: int) -> float:
    return 0.02 / (1 + step)


def run(state: State, first: int, last: int) -> State:
    train(*state, edges=(0, 9, 18, 24), first=first, last=last, lr=rate)
    return state


def saved_at(tmp_path: Path, step: int) -> Path:
    return checkpoint.save(tmp_path, *run(fresh(), 0, step), step=step, identity="run", world_size=1, keep=2)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(tmp_path: Path, step: int) -> None:
    torch.manual_seed(999 + step)  # whatever the generator did before
    resumed = fresh()
    first = checkpoint.restore(saved_at(tmp_path, step), *resumed)
    assert digest(run(resumed, first, STEPS)) == digest(run(fresh(), 0, STEPS))


def without_optimizer(state: State) -> None:
    state[1].state.clear()


def without_a_buffer(state: State) -> None:
    state[0].get_submodule("1").running_mean.zero_()


def without_one_moment(state: State) -> None:
    next(iter(state[1].state.values()))["exp_avg_sq"].zero_()


def without_nothing(state: State) -> None:
    pass


@pytest.mark.parametrize("forget", [without_optimizer, without_a_buffer, without_one_moment])
def test_a_run_that_forgets_a_part_of_its_state_is_found_out(tmp_path: Path, forget: Callable[[State], None]) -> None:
    resumed = fresh()
    first = checkpoint.restore(saved_at(tmp_path, 3), *resumed)
    forget(resumed)
    assert digest(run(resumed, first, STEPS)) != digest(run(fresh(), 0, STEPS))


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_run_that_forgets_its_step_is_found_out(tmp_path: Path, wrong: int) -> None:
    resumed = fresh()
    first = checkpoint.restore(saved_at(tmp_path, 3), *resumed)
    assert digest(run(resumed, first + wrong, STEPS)) != digest(run(fresh(), 0, STEPS))


# the same through all that a worker does, on the embedded digits

WHOLE = ("train.steps=12", "train.checkpoint_every=1", "train.keep=20", "train.log_every=1", "train.eval_every=5", "model.dropout=0.2")


@pytest.fixture(scope="module")
def whole(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    runs.alone(runs.job(storage, folder, *WHOLE))
    return folder


@pytest.mark.parametrize("step", [1, 5, 11, 12])
def test_a_worker_resumes_bit_for_bit_with_dropout_on(storage: Path, tmp_path: Path, whole: Path, step: int) -> None:
    runs.copy_as_of(whole, tmp_path / "resumed", step)
    outcome = runs.alone(runs.job(storage, tmp_path / "resumed", *WHOLE))
    assert outcome.resumed_from_step == step
    assert runs.final_files(tmp_path / "resumed", 12) == runs.final_files(whole, 12)
    assert (tmp_path / "resumed" / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


def test_a_worker_that_died_before_its_last_points_were_written_writes_them(storage: Path, tmp_path: Path, whole: Path) -> None:
    runs.copy_as_of(whole, tmp_path / "resumed", 5)
    journal = tmp_path / "resumed" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if json.loads(line)["step"] <= 7)[:-9])
    runs.alone(runs.job(storage, tmp_path / "resumed", *WHOLE))
    assert runs.losses(tmp_path / "resumed") == runs.losses(whole)
    assert curve(tmp_path / "resumed", "val/accuracy") == curve(whole, "val/accuracy")


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["metrics"][name]) for entry in entries if name in entry["metrics"]]


def test_a_worker_without_checkpoints_starts_from_the_seed_and_ends_the_same(storage: Path, tmp_path: Path, whole: Path) -> None:
    outcome = runs.alone(runs.job(storage, tmp_path, *WHOLE))
    assert outcome.resumed_from_step == 0
    assert runs.final_files(tmp_path, 12) == runs.final_files(whole, 12)


def test_validation_is_looked_at_when_asked_and_at_the_end(whole: Path) -> None:
    assert [step for step, _ in curve(whole, "val/loss")] == [5, 10, 12]


def test_how_often_a_run_is_watched_does_not_change_its_weights(storage: Path, tmp_path: Path, whole: Path) -> None:
    rarely = (*WHOLE, "train.checkpoint_every=100", "train.log_every=100", "train.eval_every=100")
    runs.alone(runs.job(storage, tmp_path, *rarely))
    ours, theirs = runs.final_files(tmp_path, 12), runs.final_files(whole, 12)
    assert ours == theirs


def test_a_run_that_diverges_says_so_and_leaves_no_checkpoint_of_it(storage: Path, tmp_path: Path) -> None:
    job = runs.job(storage, tmp_path, "optim.name=sgd", "optim.lr=1e30", "train.steps=20", "train.checkpoint_every=5", "optim.warmup=0")
    with pytest.raises(Diverged, match=r"the (loss is (nan|inf)|weights are no longer finite) at step \d+; a lower optim\.lr") as error:
        runs.alone(job)
    assert code_of(error.value) == DIVERGED
    assert not list(tmp_path.glob("checkpoints/step-*"))
