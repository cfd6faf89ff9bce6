"""What every recipe in workloads/recipes/ must do, whatever it trains. A new recipe gets these tests for nothing."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines import config
from pipelines.data import preparation
from pipelines.data.dataset import Dataset
from pipelines.run_settings import Run
from pipelines.training import checkpoint, loop
from pipelines.training.optim import make_optimizer
from pipelines.training.parallel import Group
from tests import runs
from tests.teams import SPLITS, STEPS, TeamRun
from workloads.base import Encoding, Workload

ALONE = Group(0, 1, torch.device("cpu"))
ROWS, MICRO_BATCH, OVERFIT_STEPS = 12, 5, 50

pytestmark = pytest.mark.parametrize("recipe", config.recipes())


@functools.cache
def made(recipe: str, storage: Path) -> tuple[Run, Dataset, Encoding]:
    run = runs.load(storage, *SPLITS, recipe=recipe)
    dataset = preparation.prepare(run, preparation.plan(run), preparation.in_process)
    return run, dataset, run.model.encoding_type.model_validate(dataset.manifest.encoding)


def network(recipe: str, storage: Path) -> tuple[Run, nn.Module]:
    run, _, encoding = made(recipe, storage)
    torch.manual_seed(0)
    return run, run.model.network(encoding)


def batch(recipe: str, storage: Path, index: np.ndarray) -> dict[str, Tensor]:
    run, dataset, _ = made(recipe, storage)
    taken = run.model.collate(run.model.examples(dataset.train, training=True).take(index))
    return {name: torch.from_numpy(column) for name, column in taken.items()}


@functools.cache
def curve(recipe: str, storage: Path, steps: int = OVERFIT_STEPS, micro_batch: int = ROWS, bf16: bool = False) -> list[float]:
    """The losses of training on one batch again and again."""
    run, model = network(recipe, storage)

    def batches(step: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for number, start in enumerate(range(0, ROWS, micro_batch)):
            yield number, batch(recipe, storage, np.arange(start, min(start + micro_batch, ROWS)))

    optimizer = make_optimizer(model, run.optim)
    trained = loop.train(
        model, optimizer, run.model.step, batches=batches, lr=lambda step: run.optim.lr, group=ALONE, first=0, last=steps, seed=0, bf16=bf16
    )
    return [step.means["loss"].value for step in trained]


def test_the_first_loss_is_finite_and_every_weight_gets_a_gradient(recipe: str, storage: Path) -> None:
    run, model = network(recipe, storage)
    scores = run.model.step(model, batch(recipe, storage, np.arange(ROWS)))
    assert math.isfinite(float(scores["loss"].total.detach()))
    scores["loss"].total.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert loop.finite(model)


def test_the_curves_hold_the_loss_and_the_headline(recipe: str, storage: Path) -> None:
    run, model = network(recipe, storage)
    means = {name: float(mean.value) for name, mean in run.model.step(model, batch(recipe, storage, np.arange(ROWS))).items()}
    curves = run.model.judging(made(recipe, storage)[2]).from_means(means)
    assert curves["loss"] == means["loss"]
    assert math.isfinite(curves[run.model.headline.metric])


def test_one_batch_can_be_learnt_by_heart(recipe: str, storage: Path) -> None:
    losses = curve(recipe, storage)
    assert losses[-1] < 0.3 * losses[0]


def test_the_size_of_a_micro_batch_does_not_change_the_curve(recipe: str, storage: Path) -> None:
    assert curve(recipe, storage)[:5] == pytest.approx(curve(recipe, storage, 5, micro_batch=MICRO_BATCH), abs=1e-5)


def test_the_loss_is_a_sum_over_rows(recipe: str, storage: Path) -> None:
    run, model = network(recipe, storage)
    model.eval()
    together = run.model.step(model, batch(recipe, storage, np.arange(6)))
    apart = [run.model.step(model, batch(recipe, storage, np.array([row]))) for row in range(6)]
    for name, mean in together.items():
        assert float(mean.count) == sum(float(each[name].count) for each in apart)
        assert float(mean.total.detach()) == pytest.approx(sum(float(each[name].total.detach()) for each in apart), rel=1e-5, abs=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(recipe: str, team_run: Callable[[str, int], TeamRun]) -> None:
    run = team_run(recipe, 1)
    assert runs.final_files(run.resumed, STEPS) == runs.final_files(run.whole, STEPS)


def test_two_workers_follow_the_curve_of_one(recipe: str, team_run: Callable[[str, int], TeamRun]) -> None:
    assert runs.losses(team_run(recipe, 2).whole) == pytest.approx(runs.losses(team_run(recipe, 1).whole), abs=1e-5)


def test_the_same_seed_makes_the_same_weights(recipe: str, storage: Path) -> None:
    first, second = network(recipe, storage)[1], network(recipe, storage)[1]
    assert checkpoint.weights_sha256(first) == checkpoint.weights_sha256(second)


def test_the_encoding_survives_json(recipe: str, storage: Path) -> None:
    _, _, encoding = made(recipe, storage)
    assert type(encoding).model_validate(json.loads(json.dumps(encoding.model_dump(mode="json")))) == encoding


def test_the_settings_survive_json(recipe: str, storage: Path) -> None:
    workload = made(recipe, storage)[0].model
    assert type(workload).model_validate(json.loads(json.dumps(workload.model_dump(mode="json")))) == workload


def test_raw_rows_are_answered_with_one_readable_value_a_row(recipe: str, storage: Path) -> None:
    run, model = network(recipe, storage)
    _, dataset, encoding = made(recipe, storage)
    given = run.model.serving(encoding).example(dataset.sample)
    rows = len(given)
    encoded = {name: torch.from_numpy(column) for name, column in run.model.collate(run.model.serving(encoding).inputs(given)).items()}
    with torch.no_grad():
        outputs = {name: output.numpy() for name, output in run.model.serving(encoding).respond(model.eval(), encoded).items()}
    decoded = run.model.serving(encoding).decode(outputs)
    assert rows > 0
    assert {len(column) for column in [*encoded.values(), *outputs.values(), *decoded.values()]} == {rows}
    json.dumps(decoded)


def test_raw_rows_are_encoded_as_the_prepared_ones(recipe: str, storage: Path) -> None:
    run, dataset, encoding = made(recipe, storage)
    encoded = run.model.encode(dataset.sample, encoding)
    prepared = dataset.train.take(np.arange(len(next(iter(encoded.values())))))
    assert set(encoded) == set(prepared)
    for name, column in encoded.items():
        np.testing.assert_array_equal(column, prepared[name])


def test_the_naive_answer_is_scored_by_the_headline(recipe: str, storage: Path) -> None:
    run, dataset, encoding = made(recipe, storage)
    train, test = run.model.examples(dataset.train, training=True), run.model.examples(dataset.test, training=False)
    answers = run.model.baselines(train, test, encoding)
    assert answers
    for scores in answers.values():
        assert math.isfinite(scores[run.model.headline.metric])


def test_what_the_recipe_says_of_itself_is_true(recipe: str, storage: Path) -> None:
    _, model = network(recipe, storage)
    about = config.load(recipe).about
    assert about["parameters"] == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert about["seconds"] > 0


def test_the_recipe_has_a_preset_for_gpus(recipe: str) -> None:
    assert config.load(recipe, ["preset=gpu"]).run.model != config.load(recipe).run.model


def test_bf16_follows_fp32(recipe: str, storage: Path) -> None:
    exact, rounded = curve(recipe, storage)[:5], curve(recipe, storage, 5, bf16=True)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05, abs=0.02)


def test_every_setting_is_described(recipe: str) -> None:
    workload = type(config.load(recipe).run.model)
    assert issubclass(workload, Workload)
    assert workload.__doc__
    assert [name for name, field in workload.model_fields.items() if not field.description] == []


@functools.cache
def heavy_modules() -> dict[str, list[str]]:
    """What of torch, Ray and so on is imported once each recipe, in turn, has been read by a new process."""
    asked = (
        "import json, sys; from pipelines.config import load; heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'sklearn', 'matplotlib'};"
        "told = {recipe: load(recipe) and sorted({name.partition('.')[0] for name in sys.modules} & heavy) for recipe in sys.argv[1:]};"
        "print(json.dumps(told))"
    )
    done = subprocess.run([sys.executable, "-c", asked, *config.recipes()], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_reading_a_recipe_imports_nothing_heavy(recipe: str) -> None:
    assert heavy_modules()[recipe] == []
