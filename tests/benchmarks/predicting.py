"""Answers over 200,000 images with the guide's CNN: `raylway predict`, the loop that people write, and Ray Data's documented example.

All read one Parquet file and write one with labels and probabilities, on the same two cores. Ray's start and imports are left out on all
sides: ours answers a small file in the same session first, the others count from their first row on. Then: what it takes to log and
register a model, which happens when training is over.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from cluster import session
from pipelines.config import load
from pipelines.evaluation import models
from pipelines.screen import Screen
from pipelines.verbs.predict import predict
from pipelines.verbs.train import train
from tests.benchmarks.preparing import write_images
from tests.benchmarks.processes import run_module
from tests.benchmarks.rows import Row, below, ratio_at_least

_GROUP = 20_000
_EXAMPLE_ROWS = 40_000


def measure(*, rows: int = 200_000, pairs: int = 3) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _trained(folder)
        source, few = write_images(folder / "images.parquet", rows, group=_GROUP), write_images(folder / "few.parquet", 4096)
        fewer = write_images(folder / "fewer.parquet", min(rows, _EXAMPLE_ROWS), group=_GROUP)
        ours, plain, example = [], [], []
        for number in range(pairs):
            with session.connect() as connected:  # each time anew: an idle Ray would take from the others' cores
                connected.ready()
                _ours(folder, few, f"few-{number}")
                ours.append(_ours(folder, source, str(number)))
            where = (str(weights), str(folder / "answers.parquet"))
            plain.append(run_module("tests.benchmarks.plain_predict", str(source), *where, str(cores))["rows_per_second"])
            # of 200,000 rows the example was not done after six minutes (Ray 2.60)
            example.append(run_module("tests.benchmarks.ray_predict", str(fewer), *where)["rows_per_second"])
        registering = [_registering(folder, number) for number in range(pairs)]
    return [
        ratio_at_least(f"predict, cnn over {rows:,} images: ours, plain torch loop", ours, plain, unit="rows/s", bound=0.7),
        ratio_at_least(
            f"the same: ours, Ray Data's map_batches example ({_EXAMPLE_ROWS:,} images)", ours, example, unit="rows/s", bound=3.0
        ),
        below("log and register a model, after training (cnn)", registering, unit="s", bound=2.0),
    ]


def _trained(folder: Path) -> Path:
    """The weights of a CNN for images of 28x28, as a file for scripts that know nothing of ours."""
    small = write_images(folder / "small.parquet", 2000)
    settings = (f"data.source={small}", f"storage={folder / 'runs'}", "scale.workers=0", "train.epochs=1")
    train(load("cnn", settings), screen=Screen(as_json=True))
    found = models.find("cnn", [f"storage={folder / 'runs'}"])
    save_file(load_file(found.weights), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _ours(folder: Path, source: Path, name: str) -> float:
    settings = (f"storage={folder / 'runs'}", f"scale.workers={len(os.sched_getaffinity(0))}")
    result = predict("cnn", str(source), str(folder / f"answers-{name}.parquet"), settings, screen=Screen(as_json=True))
    assert result["rows_in"] == result["rows_out"]
    return float(result["rows_per_second"])


def _registering(folder: Path, number: int) -> float:
    settings = (f"storage={folder / 'runs'}", "scale.workers=0", "train.steps=50", f"name=registers-{number}", "--json")
    return float(run_module("pipelines", "train", "cnn", *settings)["seconds"]["register"])
