"""How many trials fit is worked out, and told with its arithmetic."""

from __future__ import annotations

import pytest

from cluster.capacity import room
from cluster.session import ClusterError, Resources

BOX = Resources(cpus=8, gpus=2, node_cpus=8)
LAPTOP = Resources(cpus=2, gpus=0, node_cpus=2)


@pytest.mark.parametrize(
    ("there", "asked", "at_once", "arithmetic"),
    [
        (LAPTOP, {"workers": 1, "cpus": None, "gpus": None}, 2, "2 CPUs / (1 CPU) = 2: 2 trials at once"),
        (LAPTOP, {"workers": 1, "cpus": 2, "gpus": None}, 1, "2 CPUs / (2 CPU) = 1: 1 trial at once"),
        (LAPTOP, {"workers": 2, "cpus": None, "gpus": None}, 1, "2 CPUs / (2 workers x 1 CPU) = 1: 1 trial at once"),
        (BOX, {"workers": 1, "cpus": None, "gpus": None}, 2, "8 CPUs / (1 CPU) = 8; 2 GPUs / (1 GPU) = 2: 2 trials at once"),
        (BOX, {"workers": 1, "cpus": None, "gpus": 0.25}, 8, "8 CPUs / (1 CPU) = 8; 2 GPUs / (0.25 GPU) = 8: 8 trials at once"),
        (BOX, {"workers": 1, "cpus": None, "gpus": 0.4}, 4, "8 CPUs / (1 CPU) = 8; 2 GPUs / (0.4 GPU) = 4: 4 trials at once"),
        (BOX, {"workers": 1, "cpus": 3, "gpus": 0}, 2, "8 CPUs / (3 CPU) = 2: 2 trials at once"),
        (
            BOX,
            {"workers": 2, "cpus": 1, "gpus": 1},
            1,
            "8 CPUs / (2 workers x 1 CPU) = 4; 2 GPUs / (2 workers x 1 GPU) = 1: 1 trial at once",
        ),
    ],
)
def test_the_arithmetic_is_told(there, asked, at_once, arithmetic):
    found = room(there, **asked)
    assert (found.at_once, found.arithmetic) == (at_once, arithmetic)


def test_a_limit_is_told_where_it_limits():
    assert room(LAPTOP, workers=1, cpus=None, gpus=None, most=1).at_once == 1
    assert "at most 1" in room(LAPTOP, workers=1, cpus=None, gpus=None, most=1).arithmetic
    assert "at most" not in room(LAPTOP, workers=1, cpus=None, gpus=None, most=9).arithmetic


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"workers": 4, "cpus": None, "gpus": None}, "2 CPUs / (4 workers x 1 CPU) = 0"),
        ({"workers": 1, "cpus": 1, "gpus": 1}, "0 GPUs / (1 GPU) = 0"),
        ({"workers": 1, "cpus": 3, "gpus": None}, "2 CPUs / (3 CPU) = 0"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_arithmetic(asked, told):
    with pytest.raises(ClusterError, match="not one trial fits") as refused:
        room(LAPTOP, **asked)
    assert told in str(refused.value)


def test_a_trial_that_no_node_can_hold_is_refused():
    with pytest.raises(ClusterError, match="the largest node has 2 CPUs"):
        room(Resources(cpus=8, gpus=0, node_cpus=2), workers=1, cpus=4, gpus=None)
