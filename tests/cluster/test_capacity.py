"""How many workers and trials fit, and what each gets: worked out, and refused with the sum."""

from __future__ import annotations

import pytest

from cluster import ClusterError
from cluster.capacity import Resources, WorkerRange, check_shared_gpus, fits, trial_slots, worker_share
from pipelines.settings import Scale

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
    found = trial_slots(there, **asked)
    assert (found.at_once, found.arithmetic) == (at_once, arithmetic)


def test_a_limit_is_told_where_it_limits():
    assert trial_slots(LAPTOP, workers=1, cpus=None, gpus=None, most=1).at_once == 1
    assert "at most 1" in trial_slots(LAPTOP, workers=1, cpus=None, gpus=None, most=1).arithmetic
    assert "at most" not in trial_slots(LAPTOP, workers=1, cpus=None, gpus=None, most=9).arithmetic


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
        trial_slots(LAPTOP, **asked)
    assert told in str(refused.value)


def test_a_trial_that_no_node_can_hold_is_refused():
    with pytest.raises(ClusterError, match="the largest node has 2 CPUs"):
        trial_slots(Resources(cpus=8, gpus=0, node_cpus=2), workers=1, cpus=4, gpus=None)


# ---- workers of one group are joined by NCCL, which takes one of them a GPU


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.25), (0, 0.5), (4, 0), (2, 1), (2, 2), (2, 0.6)])
def test_who_has_a_gpu_of_its_own_or_is_alone_may_be(workers, gpus):
    check_shared_gpus(workers=str(workers), most=workers, gpus=gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(2, 0.5), (2, 0.1), (8, 0.25)])
def test_two_that_could_be_on_one_gpu_are_refused_with_what_would_do(workers, gpus):
    with pytest.raises(ClusterError) as refused:
        check_shared_gpus(workers=str(workers), most=workers, gpus=gpus)
    assert f"scale.workers={workers} x scale.gpus={gpus}: two workers of a run cannot share a GPU" in str(refused.value)
    assert "write scale.gpus=1, or scale.workers=1" in str(refused.value)


def test_a_run_and_a_trial_are_refused_before_they_start():
    with pytest.raises(ClusterError, match="cannot share a GPU"):
        worker_share(BOX, Scale(workers=2, cpus=1, gpus=0.5))
    with pytest.raises(ClusterError, match="cannot share a GPU"):
        trial_slots(BOX, workers=2, cpus=1, gpus=0.5)
    assert trial_slots(BOX, workers=1, cpus=1, gpus=0.5).at_once == 4


# ---- what each worker gets


@pytest.mark.parametrize(
    ("there", "asked", "given"),
    [
        (Resources(cpus=2, gpus=0, node_cpus=2), {"workers": 1}, (2, 0)),
        (Resources(cpus=2, gpus=0, node_cpus=2), {"workers": 2}, (1, 0)),
        (Resources(cpus=64, gpus=8, node_cpus=16), {"workers": 2}, (16, 1)),
        (Resources(cpus=64, gpus=8, node_cpus=16), {"workers": 8, "cpus": 4, "gpus": 0}, (4, 0)),
        (Resources(cpus=2, gpus=0, node_cpus=2), {"workers": 0}, (2, 0)),
    ],
)
def test_a_worker_gets_an_equal_share(there, asked, given):
    assert worker_share(there, Scale(**asked)) == given


def test_a_group_that_can_never_be_is_refused_with_the_arithmetic():
    with pytest.raises(ClusterError, match=r"scale.workers=4 x 1 CPU = 4, but the cluster has 2 CPUs"):
        worker_share(Resources(cpus=2, gpus=0, node_cpus=2), Scale(workers=4))
    with pytest.raises(ClusterError, match=r"scale.workers=2 x 1 GPU = 2, but the cluster has 1 GPU$"):
        worker_share(Resources(cpus=8, gpus=1, node_cpus=8), Scale(workers=2, gpus=1))


def test_cpus_to_read_with_are_left_where_data_are_streamed():
    assert worker_share(Resources(cpus=8, gpus=0, node_cpus=8), Scale(workers=2), spare=1) == (3, 0)
    with pytest.raises(ClusterError, match=r"scale.workers=2 x 1 CPU \+ 1 to read data with = 3, but the cluster has 2 CPUs"):
        worker_share(Resources(cpus=2, gpus=0, node_cpus=2), Scale(workers=2), spare=1)


# ---- a worker is on one node, and a share of a GPU on one GPU


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "count"),
    [
        ([(4, 0)], 1, 0, 4),
        ([(4, 0)], 3, 0, 1),
        ([(1, 0), (1, 0)], 2, 0, 0),  # two halves of different nodes are no whole
        ([(3, 0), (3, 0)], 2, 0, 2),
        ([], 1, 0, 0),
        ([(0, 0), (4, 0)], 1, 0, 4),  # a head without CPUs
        ([(8, 2)], 1, 1, 2),
        ([(2, 8)], 1, 1, 2),  # CPUs limit
        ([(8, 3)], 1, 2, 1),
        ([(8, 2)], 1, 0.5, 4),
        ([(8, 2)], 1, 0.4, 4),  # five times 0.4 would need a share of both
        ([(8, 1.4)], 1, 0.4, 2),  # what is left of a GPU in use may be in pieces
        ([(8, 0)], 1, 0.5, 0),
        ([(1, 0)], 0.1, 0, 10),
        ([(0.3, 0)], 0.1, 0, 3),  # 0.3 / 0.1 is 2.9999999999999996
    ],
)
def test_whole_workers_are_counted_node_by_node(nodes, cpus, gpus, count):
    assert fits(nodes, cpus=cpus, gpus=gpus) == count


# ---- how many workers a run may have, as it is written and as it is counted with


@pytest.mark.parametrize(
    ("written", "least", "most"), [(4, 4, 4), ("4", 4, 4), (0, 0, 0), ("1..4", 1, 4), ("2..3", 2, 3), (WorkerRange(2, 4), 2, 4)]
)
def test_a_number_or_a_range_is_read(written, least, most):
    found = WorkerRange.read(written)
    assert (found.least, found.most, found.elastic) == (least, most, least < most)


@pytest.mark.parametrize("written", ["", "four", "1..", "..4", "1...4", "1..4..6", "-1", 1.5, True, None, "9999999"])
def test_what_is_neither_is_refused_with_what_would_be_right(written):
    with pytest.raises(ValueError, match=r"is neither a number of workers, such as 4, nor a range, such as 1..4"):
        WorkerRange.read(written)


@pytest.mark.parametrize("written", ["0..4", "4..4", "4..1"])
def test_a_range_goes_up_from_one_or_more(written):
    with pytest.raises(ValueError, match=r"a range goes from at least 1 worker up to more, such as 1..4"):
        WorkerRange.read(written)


def test_it_is_written_as_it_was_read_and_no_workers_are_none():
    assert (f"{WorkerRange(1, 4)}", WorkerRange(1, 4).written) == ("1..4", "1..4")
    assert (f"{WorkerRange(3, 3)}", WorkerRange(3, 3).written) == ("3", 3)
    assert [bool(WorkerRange.read(written)) for written in (0, 1, "1..4")] == [False, True, True]


@pytest.mark.parametrize("written", [3, "1..4"])
def test_a_setting_is_stored_as_it_is_written_and_read_again(written):
    stored = Scale(workers=written).model_dump(mode="json")
    assert stored["workers"] == written
    again = Scale(**stored)
    assert again.workers == WorkerRange.read(written)
