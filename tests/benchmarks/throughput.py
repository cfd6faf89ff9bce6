"""Steady samples per second, one worker with two threads, against the loop that people write by hand: same network, batch and threads.

Ours is the worker's own function in the environment that Ray workers get, which is quick to repeat; for the CNN also the whole
`raylway train` with its Ray worker, which is what a user has. Neither side counts a process's first step.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.config import load
from pipelines.data import preparation
from tests.benchmarks.processes import WORKER_ENVIRONMENT, run_module
from tests.benchmarks.rows import Row, interleave, ratio_at_least
from tests.benchmarks.shared_data import ETTH1, MNIST, POLARITY, SHAKESPEARE, present

_THREADS = 2
_ALWAYS = (f"scale.threads={_THREADS}", "scale.gpus=0", "track.register=false")


@dataclass(frozen=True)
class Case:
    """A recipe on real data, and the plain loop that it is compared with: a module and its arguments."""

    recipe: str
    source: Path
    overrides: tuple[str, ...]
    plain: str
    arguments: tuple[str, ...]
    bound: float


CNN = Case("cnn", MNIST, ("train.epochs=2", "train.batch=128"), "plain_loop", (str(MNIST), "2", "128"), 1.0)
LSTM = Case(
    "lstm",
    ETTH1,
    (
        "data.splits={train: 8640, validation: 2880, test: 2880}",
        *("model.time=date", "model.series=[OT]", "model.targets=[OT]", "model.window=96", "model.horizon=24"),
        *("train.epochs=2", "train.batch=128", "train.micro_batch=64", "train.eval_every=10000"),
    ),
    "plain_lstm",
    (str(ETTH1), "2", "128"),
    1.6,
)
GPT = Case(
    "gpt",
    SHAKESPEARE,
    (
        *("data.splits={train: 0.9, validation: 0.05, test: 0.05}", "model.tokens=characters", "model.vocabulary=512"),
        *("model.layers=4", "model.stride=1", "model.activation=gelu_tanh", "train.steps=300", "train.batch=12", "train.eval_every=10000"),
    ),
    "plain_gpt",
    (str(SHAKESPEARE), "300", "12"),
    1.0,
)
BERT = Case(
    "bert",
    POLARITY,
    ("model.width=128", "model.dropout=0.1", "model.length=64", "train.epochs=1", "train.batch=32", "train.eval_every=10000"),
    "plain_bert",
    ("1", "32"),
    1.15,
)


def measure(*, pairs: int = 5, ray_pairs: int = 3) -> list[Row]:
    rows = [_worker_row(case, pairs) for case in (CNN, LSTM, GPT, BERT) if present(f"throughput of {case.recipe}", case.source)]
    return rows + ([_ray_row(CNN, ray_pairs)] if present("throughput on Ray", MNIST) else [])


def _worker_row(case: Case, pairs: int) -> Row:
    with tempfile.TemporaryDirectory() as storage:
        settings = _settings(case, storage)
        run_module("pipelines", "prepare", case.recipe, *settings, "--json")
        plain = _plain(case, settings, Path(storage))
        ours = functools.partial(run_module, "tests.benchmarks.one_worker", case.recipe, *settings, environment=WORKER_ENVIRONMENT)
        rates = interleave(lambda _: ours()["samples_per_second"], lambda _: plain(), pairs=pairs)
    return ratio_at_least(f"throughput: {case.recipe}, the worker's function, plain loop", *rates, unit="samples/s", bound=case.bound)


def _ray_row(case: Case, pairs: int) -> Row:
    with tempfile.TemporaryDirectory() as storage:
        settings = _settings(case, storage)
        plain = _plain(case, settings, Path(storage))
        ours = functools.partial(run_module, "pipelines", "train", case.recipe, *settings, "--again", "--json")
        rates = interleave(lambda _: ours()["samples_per_second"], lambda _: plain(), pairs=pairs)
    return ratio_at_least(f"throughput: {case.recipe}, raylway train on Ray, plain loop", *rates, unit="samples/s", bound=case.bound)


def _settings(case: Case, storage: str) -> list[str]:
    return [f"data.source={case.source}", *case.overrides, *_ALWAYS, f"storage={storage}"]


def _plain(case: Case, settings: Sequence[str], storage: Path) -> Callable[[], float]:
    arguments = (str(_rows_of_bert(settings, storage)), *case.arguments) if case is BERT else case.arguments
    return lambda: run_module(f"tests.benchmarks.{case.plain}", *arguments, str(_THREADS))["samples_per_second"]


def _rows_of_bert(settings: Sequence[str], storage: Path) -> Path:
    """The prepared training rows and the network's config, as plain_bert reads them."""
    run = load("bert", settings).run
    dataset = preparation.prepare(run, preparation.plan(run), preparation.in_process)
    path = storage / "rows.npz"
    np.savez(path, **dataset.train.take(np.arange(len(dataset.train))), config=dataset.manifest.encoding["config"])
    return path
