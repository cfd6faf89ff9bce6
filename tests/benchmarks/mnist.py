"""Where the MNIST images lie, beside the repository; and the settings that every benchmark on them shares."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.processes import ROOT

IMAGES = ROOT.parent / "shared" / "data" / "mnist-10k-images-idx3-ubyte.gz"
BATCH, THREADS, EPOCHS = 128, 2, 2


def present(benchmark: str) -> bool:
    """Whether the images are there; says so if they are not."""
    if not IMAGES.is_file():
        print(f"{benchmark}: skipped, there are no MNIST images at {IMAGES}", file=sys.stderr)
    return IMAGES.is_file()


def overrides(storage: Path) -> list[str]:
    """The recipe `cnn` on these images, on CPUs."""
    return [
        f"data.source={IMAGES}",
        f"storage={storage}",
        f"train.epochs={EPOCHS}",
        f"train.batch={BATCH}",
        f"scale.threads={THREADS}",
        "scale.gpus=0",
        "track.register=false",
    ]
