"""How many workers are launched, and when others are wanted: decided from what the nodes are said to have."""

from __future__ import annotations

import pytest

from cluster.capacity import Resources
from cluster.nodes import Node
from pipelines.elastic import ELASTIC_PATIENCE_SECONDS, PATIENCE_SECONDS, Team
from pipelines.worker_range import WorkerRange

LAPTOP = Resources(cpus=4, gpus=0, node_cpus=4)


def node(name: str, *, cpus: float = 0, gpus: float = 0, leaving: bool = False) -> Node:
    return Node(name * 8, f"10.0.0.{ord(name)}", cpus, gpus, leaving)


def there(*nodes: Node) -> dict[str, Node]:
    return {each.id: each for each in nodes}


def team(span: int | str, *, cpus: int = 1, gpus: float = 0, here: Resources | None = None) -> Team:
    return Team(WorkerRange.read(span), cpus, gpus, here)


FULL_A, FULL_B = node("a"), node("b")


def test_nothing_is_wanted_where_nothing_is_free():
    assert team("1..4").wanted(2, [FULL_A.id, FULL_B.id], there(FULL_A, FULL_B)) is None


@pytest.mark.parametrize(("free", "more"), [(1, 3), (2, 4), (5, 4)])
def test_what_is_free_is_wanted_up_to_the_most(free, more):
    reason = team("1..4").wanted(2, [FULL_A.id, FULL_B.id], there(FULL_A, FULL_B, node("c", cpus=free)))
    assert reason
    assert (reason.text, reason.then, reason.counts) == (f"room for {more} workers", f"going on with {more}", True)


def test_free_cpus_of_two_nodes_make_no_worker_that_fits_on_neither():
    halves = there(FULL_A, node("b", cpus=1), node("c", cpus=1))
    assert team("1..4", cpus=2).wanted(1, [FULL_A.id], halves) is None
    assert team("1..4", cpus=1).wanted(1, [FULL_A.id], halves)


@pytest.mark.parametrize("span", [2, "1..2"])
def test_who_has_all_it_may_have_wants_no_more(span):
    assert team(span).wanted(2, [FULL_A.id, FULL_B.id], there(FULL_A, FULL_B, node("c", cpus=8))) is None


def test_a_run_of_a_fixed_number_leaves_a_node_that_is_about_to_go():
    leaving = node("b", leaving=True)
    reason = team(2).wanted(2, [FULL_A.id, leaving.id], there(FULL_A, leaving))
    assert reason
    assert (reason.text, reason.then) == ("node 10.0.0.98 (bbbbbbbb) is about to be taken away", "going on elsewhere")
    assert not reason.counts, "a worker that is lost meanwhile is no retry"


def test_nodes_that_leave_together_are_named_together():
    leaving = [node(name, leaving=True) for name in "ab"]
    reason = team(2).wanted(2, [each.id for each in leaving], there(*leaving))
    assert reason
    assert reason.text == "node 10.0.0.97 (aaaaaaaa) and node 10.0.0.98 (bbbbbbbb) is about to be taken away"


def test_a_node_that_leaves_with_none_of_its_workers_is_nobodys_concern_and_no_room():
    assert team("1..4").wanted(1, [FULL_A.id], there(FULL_A, node("b", cpus=4, leaving=True))) is None


def test_a_node_that_is_not_known_any_more_is_passed_over():
    assert team(2).wanted(2, [FULL_A.id, "gone"], there(FULL_A)) is None


def test_gpus_limit_how_many_more_fit():
    free = there(FULL_A, node("b", cpus=8, gpus=1))
    reason = team("1..4", gpus=1).wanted(1, [FULL_A.id], free)
    assert reason
    assert reason.text == "room for 2 workers"


@pytest.mark.parametrize(("span", "size"), [(3, 3), ("1..2", 2), ("1..4", 4), ("1..8", 4)])
def test_on_one_machine_as_many_as_fit_are_launched_and_told_as_a_number(span, size):
    assert f"{team(span, here=LAPTOP).size()}" == f"{size}"


def test_wide_workers_are_fewer():
    assert team("1..4", cpus=3, here=LAPTOP).size() == 1


def test_on_one_machine_nobody_watches(tmp_path):
    from pipelines.pausing import Pause

    pause = Pause(tmp_path / "pause")
    with team("1..4", here=LAPTOP).watched(4, pause):
        pass
    assert pause.reason is None


def test_who_can_go_on_with_fewer_soon_looks_again():
    assert team("1..4").patience_seconds == ELASTIC_PATIENCE_SECONDS < PATIENCE_SECONDS == team(4).patience_seconds
