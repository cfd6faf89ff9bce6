"""What a model says of rows: read, encoded by the code that encodes for training, answered, in the rows' order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.data.encode import tried
from pipelines.evaluation.models import Model
from pipelines.evaluation.row_source import Asked, rows_of
from pipelines.evaluation.split_scores import network_of
from workloads import inference
from workloads.base import Arrays

_CPU_BYTES, _GPU_BYTES = 128 << 10, 8 << 20
"""Bytes of the rows answered at once: what a network makes of more of them leaves a CPU's cache (the guide's CNN lost a quarter)."""
_LEAST_ROWS, _MOST_ROWS = 16, 1024


@dataclass(frozen=True)
class Answered:
    """Consecutive rows: their numbers in the source, what is kept of them, and the answers, by column."""

    rows: np.ndarray
    kept: Arrays
    answers: dict[str, list[Any]]


@dataclass(frozen=True)
class Answerer:
    """A model and the rows that it is asked about; plain picklable values. `threads`: those that torch computes with."""

    model: Model
    asked: Asked
    threads: int

    def answers(self, start: int, stop: int, bad: dict[int, str] | None) -> Iterator[Answered]:
        """Rows [start, stop) in order. Those that cannot be used are put into `bad` (row -> reason); where it is None they are a DataError.

        Where rows follow one another, those before the first whole window have None for an answer.
        """
        serving, source = self.model.serving, self.asked.source
        at = max(0, start - serving.lookback)
        before: dict[str, np.ndarray] = {}
        for given, kept in self.asked.read(at, stop):
            place = _places(source.place, at)
            failed: dict[int, str] | None = None if bad is None else {}
            for good, encoded in tried(self._ask, rows_of(given), {**kept, **given}, label=source.label, place=place, bad=failed):
                encoded, before = _behind(before, encoded, serving.lookback)
                answers = self._answers(serving.windows(encoded), len(good))
                fresh = good + at >= start
                yield Answered(
                    (good + at)[fresh],
                    {name: column[good[fresh]] for name, column in kept.items()},
                    {name: values[len(good) - int(fresh.sum()) :] for name, values in answers.items()},
                )
            if bad is not None and failed:
                bad.update({row + at: reason for row, reason in failed.items()})
            at += len(rows_of(given))

    def _ask(self, raw: Arrays) -> dict[str, np.ndarray]:
        return self.model.serving.encode({name: raw[name] for name in self.asked.columns})

    def _answers(self, examples: dict[str, np.ndarray], rows: int) -> dict[str, list[Any]]:
        """Readable columns of `rows` rows, of which the last ones have an example each, and those before them have none."""
        decoded = self.model.serving.decode(self._outputs(examples))
        return {name: [None] * (rows - len(values)) + values for name, values in decoded.items()}

    def _outputs(self, examples: dict[str, np.ndarray]) -> Arrays:
        import torch

        torch.set_num_threads(self.threads)
        network, device = network_of(self.model)
        row_bytes = sum(column.nbytes for column in examples.values()) / max(len(next(iter(examples.values()))), 1)
        most_bytes = _CPU_BYTES if device == "cpu" else _GPU_BYTES
        batch_rows = int(min(max(most_bytes / max(row_bytes, 1), _LEAST_ROWS), _MOST_ROWS))
        workload = self.model.workload
        return inference.outputs(workload, self.model.serving.respond, network, examples, batch_rows=batch_rows)


def _behind(before: dict[str, np.ndarray], encoded: dict[str, np.ndarray], lookback: int) -> tuple[dict[str, np.ndarray], ...]:
    """The rows with those that they look back on before them, and the last of these, for the rows that come next."""
    if not lookback:
        return encoded, before
    joined = {name: np.concatenate([before[name], column]) if before else column for name, column in encoded.items()}
    return joined, {name: column[-lookback:] for name, column in joined.items()}


def _places(place: Any, at: int) -> Any:
    return lambda row: place(row + at)
