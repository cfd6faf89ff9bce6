"""What each recipe reaches on real data: one run of fixed settings and seed, against the figure that it should reach.

Accuracies are of the test split; errors of forecasts are of standardised values; the language model's loss is in nats a character.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines.config import load
from tests.benchmarks.processes import WORKER_ENVIRONMENT, run_module
from tests.benchmarks.rows import Row
from tests.benchmarks.shared_data import ETTH1, MNIST, POLARITY, SHAKESPEARE, present

_INFORMER = (  # 12, 4 and 4 months of hours; four days in, one ahead (Zhou et al., 2021)
    "data.splits={train: 8640, validation: 2880, test: 2880}",
    *("model.time=date", "model.series=[OT]", "model.targets=[OT]", "model.window=96", "model.horizon=24"),
)
_RESIDUAL = (*_INFORMER, "model.residual=true", "train.epochs=5", "train.micro_batch=64")
_NANOGPT = (  # nanoGPT's setting for CPUs; the last tenth of the text is scored
    *("data.splits={train: 0.89, validation: 0.01, test: 0.10}", "model.tokens=characters", "model.layers=4", "model.stride=1"),
    *("train.steps=2000", "train.batch=12", "train.eval_every=500", "optim.warmup=100"),
)
_DECAYED = "optim.weight_decay=0.1"
FIGURES: tuple[tuple[str, Path | str, tuple[str, ...], float], ...] = (
    ("mlp", MNIST, ("train.epochs=30", "model.dropout=0.5"), 0.95),
    ("mlp_binary", "breast_cancer", (), 0.96),
    ("mlp_regression", "diabetes", (), 62.0),
    ("cnn", MNIST, ("train.epochs=15", "model.dropout=0.5", "optim.lr=2e-3", _DECAYED), 0.97),
    ("resnet", MNIST, ("train.epochs=20", "train.batch=64", "model.shift=2", "model.rotate=15", _DECAYED), 0.985),
    ("rnn", ETTH1, _RESIDUAL, 0.032),
    ("lstm", ETTH1, _RESIDUAL, 0.032),
    ("gru", ETTH1, _RESIDUAL, 0.032),
    (
        "lstm_text",
        POLARITY,
        ("model.vocabulary=20000", "model.dropout=0.5", "model.word_dropout=0.2", "train.epochs=4", "optim.lr=2e-3", _DECAYED),
        0.73,
    ),
    ("transformer", POLARITY, ("model.vocabulary=20000", "model.dropout=0.3", "model.word_dropout=0.3", "train.epochs=4", _DECAYED), 0.72),
    ("gpt", SHAKESPEARE, _NANOGPT, 1.90),
    ("bert", POLARITY, ("model.width=128", "model.dropout=0.3", "optim.lr=5e-4", "train.epochs=6"), 0.70),
)
"""(recipe, data, settings, goal)."""


def measure() -> list[Row]:
    return [_row(*figure) for figure in FIGURES if not isinstance(figure[1], Path) or present(f"figure of {figure[0]}", figure[1])]


def _row(recipe: str, source: Path | str, settings: tuple[str, ...], goal: float) -> Row:
    headline = load(recipe).run.model.headline
    with tempfile.TemporaryDirectory() as storage:
        given = (f"data.source={source}", *settings, f"storage={storage}", "track.register=false", "scale.workers=0", "--json")
        result = run_module("pipelines", "train", recipe, *given, environment=WORKER_ENVIRONMENT)
    reached, naive = (result["metrics"][f"{kind}/{headline.metric}"] for kind in ("test", "baseline"))
    met = reached >= goal if headline.mode == "max" else reached <= goal
    data = source.name if isinstance(source, Path) else source
    sign = ">=" if headline.mode == "max" else "<="
    seconds = f"{result['seconds']['train']:.0f} s of training"
    return Row(
        f"figure: {recipe} on {data}, test {headline.metric}", f"{reached:.4f}", f"naive {naive:.4f}", seconds, f"{sign} {goal}", met
    )
