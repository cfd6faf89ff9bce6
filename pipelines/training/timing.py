"""How fast the loop goes: steps and seconds, apart from evaluating and saving."""

from __future__ import annotations

import time


class Timing:
    """Seconds spent stepping, apart from evaluating and saving, and the steps they bought."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.first_step = time.time()
        self.steps, self.seconds = 0, 0.0
        self._window = (0, 0.0, 0.0)
        self._data_seconds = 0.0

    def add(self, seconds: float, data_seconds: float) -> None:
        self.steps += 1
        if self.steps == 1:  # the first step also builds kernels and buffers; it is no part of a steady rate
            self.first_step = time.time()
            return
        self.seconds += seconds
        self._data_seconds += data_seconds

    def window(self) -> dict[str, float]:
        """Rates since the last call; nothing before the second step."""
        steps, seconds, data_seconds = self._window
        self._window = (self.steps, self.seconds, self._data_seconds)
        spent = self.seconds - seconds
        if spent <= 0:
            return {}
        counted = self.steps - max(steps, 1)
        return {
            "perf/samples_per_second": counted * self._batch / spent,
            "perf/data_wait": (self._data_seconds - data_seconds) / spent,
        }

    @property
    def samples_per_second(self) -> float | None:
        return (self.steps - 1) * self._batch / self.seconds if self.seconds else None
