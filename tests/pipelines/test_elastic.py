"""How many workers are launched, when they pause and when they are launched again; nothing of the run is lost or changed by it."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest

from cluster.capacity import Resources, WorkerRange
from cluster.nodes import Node
from cluster.ray_train import NotStarted, WorkersFailed
from pipelines import elastic
from pipelines.elastic import (
    ELASTIC_PATIENCE_SECONDS,
    PATIENCE_SECONDS,
    STOP,
    Pause,
    Reason,
    WorkerGroup,
    WorkerLost,
    with_restarts,
)
from pipelines.run_record import RunFolder
from pipelines.training.job import Paused
from pipelines.training.worker import work
from tests import runs, spawn

LAPTOP = Resources(cpus=4, gpus=0, node_cpus=4)


def node(name: str, *, cpus: float = 0, gpus: float = 0, leaving: bool = False) -> Node:
    return Node(name * 8, f"10.0.0.{ord(name)}", cpus, gpus, leaving)


def alive(*nodes: Node) -> dict[str, Node]:
    return {each.id: each for each in nodes}


def group(span: int | str, *, cpus: int = 1, gpus: float = 0, here: Resources | None = None) -> WorkerGroup:
    return WorkerGroup(WorkerRange.read(span), cpus, gpus, here)


FULL_A, FULL_B = node("a"), node("b")


def test_nothing_is_wanted_where_nothing_is_free():
    assert group("1..4").reason_to_pause(2, [FULL_A.id, FULL_B.id], alive(FULL_A, FULL_B)) is None


@pytest.mark.parametrize(("free", "more"), [(1, 3), (2, 4), (5, 4)])
def test_what_is_free_is_wanted_up_to_the_most(free, more):
    reason = group("1..4").reason_to_pause(2, [FULL_A.id, FULL_B.id], alive(FULL_A, FULL_B, node("c", cpus=free)))
    assert reason
    assert (reason.text, reason.then, reason.counts) == (f"room for {more} workers", f"going on with {more}", True)


def test_free_cpus_of_two_nodes_make_no_worker_that_fits_on_neither():
    halves = alive(FULL_A, node("b", cpus=1), node("c", cpus=1))
    assert group("1..4", cpus=2).reason_to_pause(1, [FULL_A.id], halves) is None
    assert group("1..4", cpus=1).reason_to_pause(1, [FULL_A.id], halves)


@pytest.mark.parametrize("span", [2, "1..2"])
def test_who_has_all_it_may_have_wants_no_more(span):
    assert group(span).reason_to_pause(2, [FULL_A.id, FULL_B.id], alive(FULL_A, FULL_B, node("c", cpus=8))) is None


def test_a_run_of_a_fixed_number_leaves_a_node_that_is_about_to_go():
    leaving = node("b", leaving=True)
    reason = group(2).reason_to_pause(2, [FULL_A.id, leaving.id], alive(FULL_A, leaving))
    assert reason
    assert (reason.text, reason.then) == ("node 10.0.0.98 (bbbbbbbb) is about to be taken away", "going on elsewhere")
    assert not reason.counts, "a worker that is lost meanwhile is no retry"


def test_nodes_that_leave_together_are_named_together():
    leaving = [node(name, leaving=True) for name in "ab"]
    reason = group(2).reason_to_pause(2, [each.id for each in leaving], alive(*leaving))
    assert reason
    assert reason.text == "node 10.0.0.97 (aaaaaaaa) and node 10.0.0.98 (bbbbbbbb) is about to be taken away"


def test_a_node_that_leaves_with_none_of_its_workers_is_nobodys_concern_and_no_room():
    assert group("1..4").reason_to_pause(1, [FULL_A.id], alive(FULL_A, node("b", cpus=4, leaving=True))) is None


def test_a_node_that_is_not_known_any_more_is_passed_over():
    assert group(2).reason_to_pause(2, [FULL_A.id, "gone"], alive(FULL_A)) is None


def test_gpus_limit_how_many_more_fit():
    free = alive(FULL_A, node("b", cpus=8, gpus=1))
    reason = group("1..4", gpus=1).reason_to_pause(1, [FULL_A.id], free)
    assert reason
    assert reason.text == "room for 2 workers"


@pytest.mark.parametrize(("span", "size"), [(3, 3), ("1..2", 2), ("1..4", 4), ("1..8", 4)])
def test_on_one_machine_as_many_as_fit_are_launched_and_told_as_a_number(span, size):
    assert f"{group(span, here=LAPTOP).size()}" == f"{size}"


def test_wide_workers_are_fewer():
    assert group("1..4", cpus=3, here=LAPTOP).size() == 1


def test_on_one_machine_nobody_watches(tmp_path):
    pause = Pause(tmp_path / "pause")
    with group("1..4", here=LAPTOP).watched(4, pause):
        pass
    assert pause.reason is None


def test_who_can_go_on_with_fewer_soon_looks_again():
    assert group("1..4").patience_seconds == ELASTIC_PATIENCE_SECONDS < PATIENCE_SECONDS == group(4).patience_seconds


# ---- a pause: who asks, who sees it, and that nothing of the run is lost or changed by it

ROOM = Reason("room for 2 workers", "going on with 2")
TAKEN = Reason("node 10.0.0.7 is about to be taken away", "going on elsewhere", counts=False)
SETTINGS = ("train.steps=12", "train.batch=33", "train.micro_batch=5", "train.checkpoint_every=5", "train.log_every=1", "train.keep=10")


def at_call(number):
    """Says at its `number`th call, and after it, that a pause is asked for."""
    calls = itertools.count(1)
    return lambda: next(calls) >= number


def in_parts(rank: int, world_size: int, *, job) -> tuple[object, object]:
    """Pause at the third step, as one of the workers asks, and then go on to the end."""
    asked = at_call(3) if rank == world_size - 1 else lambda: False
    first = work(job, rank=rank, world_size=world_size, device="cpu", pause=asked)
    return first, work(job, rank=rank, world_size=world_size, device="cpu")


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_workers_pause_at_the_step_at_which_one_is_asked_and_go_on_to_the_same_bits(world_size, storage, tmp_path):
    job = runs.job(storage, tmp_path / "paused", *SETTINGS, recipe="lstm")
    whole = runs.job(storage, tmp_path / "whole", *SETTINGS, recipe="lstm")
    if world_size == 1:
        told, undisturbed = [in_parts(0, 1, job=job)], runs.alone(whole)
    else:
        told = spawn.together(functools.partial(in_parts, job=job), world_size=2, scratch=tmp_path / "a")
        [undisturbed, _] = spawn.together(functools.partial(undivided, job=whole), world_size=2, scratch=tmp_path / "b")
    assert [first for first, _ in told] == [Paused(3)] * world_size
    outcome = told[0][1]
    assert (outcome.resumed_from_step, outcome.steps) == (3, 12)
    assert outcome.weights_sha256 == undisturbed.weights_sha256
    assert runs.losses(tmp_path / "paused") == runs.losses(tmp_path / "whole")


def undivided(rank: int, world_size: int, *, job) -> object:
    return work(job, rank=rank, world_size=world_size, device="cpu")


def test_who_is_asked_at_the_last_step_is_done(storage, tmp_path):
    job = runs.job(storage, tmp_path / "run", *SETTINGS)
    assert work(job, rank=0, world_size=1, device="cpu", pause=at_call(12)).steps == 12


def test_a_request_is_seen_by_who_looks_and_is_over_before_the_next_launch(tmp_path, monkeypatch):
    monkeypatch.setattr(elastic, "_LOOK_SECONDS", 0.0)
    pause, look = Pause(tmp_path / "pause"), elastic.pause_requested(tmp_path / "pause")
    assert not look(), "no file: nobody will ask"
    pause.clear()
    assert not look()
    pause.request(ROOM)
    assert look()
    pause.clear()
    assert not elastic.pause_requested(tmp_path / "pause")()


def test_the_file_is_not_looked_at_at_each_step(tmp_path):
    pause, look = Pause(tmp_path / "pause"), elastic.pause_requested(tmp_path / "pause")
    assert not look()
    pause.request(ROOM)
    assert not look(), "a second has not passed"


def test_to_stop_outweighs_what_is_asked_later_and_stays(tmp_path):
    pause = Pause(tmp_path / "pause")
    pause.request(STOP)
    pause.request(ROOM)
    pause.clear()
    assert pause.stopping
    assert elastic.pause_requested(tmp_path / "pause")()


# ---- what the driver makes of it


class Launches:
    """What each launch comes to, one after another, and what was said."""

    def __init__(self, folder: Path, *outcomes) -> None:
        self.pause, self.said, self._folder, self._outcomes = Pause(folder / ".pause"), [], RunFolder(folder), list(outcomes)

    def _launch(self):
        outcome = self._outcomes.pop(0)
        if callable(outcome):
            outcome = outcome(self.pause)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run(self, *, retries: int = 0):
        return with_restarts(self._launch, self._folder, pause=self.pause, retries=retries, say=self.said.append)


def asking(reason, outcome):
    def launch(pause):
        pause.request(reason)
        return outcome

    return launch


LOST = WorkersFailed({}, {1: "its process died"})


def test_a_pause_is_no_retry_and_says_why_at_which_step_and_what_follows(tmp_path):
    launches = Launches(tmp_path, asking(TAKEN, Paused(1234)), asking(ROOM, Paused(2000)), "done")
    assert launches.run() == "done"
    assert launches.said == [
        "node 10.0.0.7 is about to be taken away: checkpoint at step 1,234, going on elsewhere",
        "room for 2 workers: checkpoint at step 2,000, going on with 2",
    ]


def test_the_workers_of_a_node_that_was_announced_to_go_are_no_retry(tmp_path):
    launches = Launches(tmp_path, asking(TAKEN, LOST), "done")
    assert launches.run() == "done"
    assert launches.said == [
        "node 10.0.0.7 is about to be taken away, and did not wait for a checkpoint: lost worker 1: its process died; "
        "going on from the beginning"
    ]


def test_a_worker_lost_while_others_are_made_room_for_is_a_retry(tmp_path):
    with pytest.raises(WorkerLost, match=r"scale.retries=0"):
        Launches(tmp_path, asking(ROOM, LOST)).run()


def test_workers_that_found_no_place_are_no_retry(tmp_path):
    launches = Launches(tmp_path, NotStarted("no room yet"), NotStarted("no room yet"), "done")
    assert launches.run() == "done"
    assert launches.said == ["no room yet"] * 2


@pytest.mark.parametrize("outcome", [Paused(7), LOST, NotStarted("no room yet")])
def test_who_is_to_stop_is_launched_no_more(tmp_path, outcome):
    assert Launches(tmp_path, asking(STOP, outcome)).run(retries=1) is None
