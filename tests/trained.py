"""Small real models: trained in this process in a second or two, registered in a storage of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipelines import config
from pipelines.run_record import RunFolder
from pipelines.screen import Screen
from pipelines.tracking.client import tracking_uri
from pipelines.verbs.train import train
from pipelines.workflows import promote_registered

QUICK = ("scale.workers=0", "scale.threads=1")
SMALL = {
    "cnn": ("train.steps=60",),
    "mlp_binary": ("train.steps=60",),
    "mlp_regression": ("train.steps=60",),
    "lstm": ("train.steps=20", "model.window=24", "model.horizon=6", "model.width=8", "model.layers=1"),
    "lstm_text": ("train.steps=40", "model.embedding=8", "model.width=8", "model.vocabulary=300"),
    "gpt": (
        "train.steps=20",
        "train.eval_every=20",
        "model.layers=1",
        "model.heads=2",
        "model.width=16",
        "model.vocabulary=256",
        "model.window=16",
    ),
}
"""Settings with which a recipe's training takes a second or two."""


def storage_with(folder: Path, empty_database: Path) -> Path:
    """`folder` as a storage whose MLflow database is there already."""
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def trained(storage: Path, *overrides: str, recipe: str = "cnn") -> dict[str, Any]:
    """What `raylway train` gives for a small model."""
    loaded, screen = config.load(recipe, [f"storage={storage}", *QUICK, *SMALL[recipe], *overrides]), Screen(as_json=True)
    result = train(loaded, screen=screen)
    folder = RunFolder(storage / loaded.run.experiment / result["run_name"])
    promote_registered(folder, storage=storage, uri=tracking_uri(storage, loaded.run.track.uri), patience_seconds=0, screen=screen)
    return result
