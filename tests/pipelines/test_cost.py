"""What a run has cost, over all the times it was started."""

from __future__ import annotations

import time

import pytest

from pipelines.cost import Attempt
from pipelines.run_record import RunFolder
from pipelines.run_states import Cost


def test_cpu_hours_are_seconds_times_what_all_workers_hold(tmp_path):
    attempt = Attempt(began=time.time() - 3600)
    attempt.hold(4, 2, 0.5)
    cost = attempt.cost()
    assert (cost.seconds, cost.cpu_hours, cost.gpu_hours) == pytest.approx((3600, 8, 2), rel=1e-3)
    attempt.hold(0, 3, 0)
    assert attempt.cost().cpu_hours == pytest.approx(3, rel=1e-3), "no workers: this process"


def test_a_run_that_was_taken_up_again_cost_both_times(tmp_path):
    folder = RunFolder(tmp_path)
    for _ in range(2):
        attempt = Attempt(began=time.time() - 1800)
        attempt.hold(1, 2, 0)
        total = attempt.settle(folder)
    assert total.seconds == pytest.approx(3600, rel=1e-3)
    assert total.metrics() == pytest.approx({"cost/seconds": 3600, "cost/cpu_hours": 2, "cost/gpu_hours": 0}, rel=1e-3)
    assert Cost(1, 2, 3) + Cost(1, 1, 1) == Cost(2, 3, 4)
