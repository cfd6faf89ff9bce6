"""Where the real data lie, beside the repository. What is not there is skipped with a notice."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.processes import ROOT

FOLDER = ROOT.parent / "shared" / "data"
MNIST, ETTH1, SHAKESPEARE, POLARITY = (
    FOLDER / name for name in ("mnist-10k-images-idx3-ubyte.gz", "ETTh1.csv", "tinyshakespeare.txt", "rt-polarity.csv")
)


def present(benchmark: str, path: Path) -> bool:
    """Whether the data are there; says so if they are not."""
    if not path.is_file():
        print(f"{benchmark}: skipped, there is no {path}", file=sys.stderr)
    return path.is_file()
