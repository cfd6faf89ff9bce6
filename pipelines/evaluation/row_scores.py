"""What each test row adds to each score, kept with a run: so that runs can be compared row by row without their networks or their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workloads.base import Arrays, Rows
from workloads.judging import Judging, Score, joined

ARTIFACT = "scores/test.npz"
"""Where they lie among a run's artifacts."""
_PIECE = 1024


@dataclass(frozen=True)
class RowScores:
    """Scores by name, each row's part in them; `span` rows in a row share data with one another (1: none do)."""

    scores: Mapping[str, Score]
    span: int
    derived: Mapping[str, str] = field(default_factory=dict)
    """Metrics that rise with a score, such as rmse with mse: runs are compared by that score."""

    def __len__(self) -> int:
        return len(next(iter(self.scores.values())).total)


def row_scores(judging: Judging, outputs: Arrays, examples: Rows) -> RowScores:
    """The scores of each of `examples`, of which a network said `outputs`, in their order."""
    parts = []
    for start in range(0, len(examples), _PIECE):
        taken = examples.take(np.arange(start, min(start + _PIECE, len(examples))))
        parts.append(judging.judge({name: column[start : start + _PIECE] for name, column in outputs.items()}, taken))
    return RowScores(joined(parts).scores, judging.span, {name: score for name, (score, _) in judging.derived.items()})


def write(path: Path, rows: RowScores) -> None:
    """Keep them in a file of plain arrays."""
    arrays: dict[str, Any] = {"span": np.int64(rows.span)}
    for name, score in rows.scores.items():
        arrays |= {f"{name} total": score.total, f"{name} count": score.count}
    arrays |= {f"{name} derived": np.array(score) for name, score in rows.derived.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read(path: Path) -> RowScores:
    """What `write` kept. Nothing in the file can run."""
    with np.load(path, allow_pickle=False) as file:
        names = [name.removesuffix(" total") for name in file.files if name.endswith(" total")]
        derived = {name.removesuffix(" derived"): str(file[name]) for name in file.files if name.endswith(" derived")}
        scores = {name: Score(file[f"{name} total"], file[f"{name} count"]) for name in names}
        return RowScores(scores, int(file["span"]), derived)
