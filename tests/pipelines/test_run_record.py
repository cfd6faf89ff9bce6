"""One driver and one writer in a run's folder, and one sentence where nothing can be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import config, run_states
from pipelines.errors import CLUSTER, StorageError, code_of
from pipelines.run_record import Attempt, RunFolder, check_writable, claim
from pipelines.run_states import CONFIG, COST, ENDING, IDENTITY, SENT, Cost, State
from tests.trained import storage_with, trained

HOLD = """
import sys, time
from pathlib import Path
from pipelines.run_record import RunFolder
with RunFolder(Path(sys.argv[1])).locked("writer", wait_seconds=5):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the writer's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_excludes_another_process_and_names_it(tmp_path: Path, holder: subprocess.Popen) -> None:
    with (
        pytest.raises(StorageError, match=rf"has a writer already \(process {holder.pid}\)"),
        RunFolder(tmp_path).locked("writer", wait_seconds=0.2),
    ):
        pytest.fail("two writers at once")


def test_a_lock_is_free_as_soon_as_its_holder_is_killed(tmp_path: Path, holder: subprocess.Popen) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with RunFolder(tmp_path).locked("writer", wait_seconds=5):
        assert time.monotonic() - began < 1


def test_two_roles_do_not_exclude_each_other(tmp_path: Path, holder: subprocess.Popen) -> None:
    with RunFolder(tmp_path).locked("driver", wait_seconds=0):
        assert holder.poll() is None


def test_a_lock_can_be_taken_again_after_an_error_inside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.locked("driver", wait_seconds=0):
        _ = 1 / 0
    with folder.locked("driver", wait_seconds=0), pytest.raises(StorageError), folder.locked("driver", wait_seconds=0):
        pytest.fail("two drivers at once")


def test_storage_below_a_file_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "runs"
    with pytest.raises(StorageError) as error:
        check_writable(root)
    assert str(error.value) == f"storage={root} cannot be written: Not a directory"
    assert code_of(error.value) == CLUSTER


def test_storage_that_is_a_file_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"runs cannot be written: File exists$"):
        check_writable(tmp_path / "runs")


def test_storage_that_can_be_no_path_is_one_clear_sentence() -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        check_writable(Path("a\0b"))


def test_looking_whether_storage_can_be_written_leaves_nothing_in_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_a_state_is_replaced_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write(CONFIG, "long " * 1000)
    with folder.path_of(CONFIG).open() as reader:
        folder.write(CONFIG, "short")
        assert len(reader.read()) == 5000, "who reads the old one goes on reading it"
    assert folder.read(CONFIG) == "short"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_the_record_names_everything_that_a_finished_run_leaves(tmp_path: Path, empty_database: Path) -> None:
    storage = storage_with(tmp_path, empty_database)
    result = trained(storage, "track.register=false", recipe="mlp_binary")
    [folder] = [RunFolder(path.parent) for path in storage.glob(f"*/{result['run_name']}/identity")]
    states = [state for state in vars(run_states).values() if isinstance(state, State)]
    others = {"journal.jsonl", "checkpoints", "page", "run.log", ".driver.lock", ".writer.lock"}
    assert {path.name for path in folder.path.iterdir()} <= {state.name for state in states} | others
    for state in states:
        if text := (folder.path_of(state).read_text() if folder.path_of(state).exists() else ""):
            folder.write(state, folder.read(state))
            assert folder.path_of(state).read_text() == text, state.name


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"no": "field"}'])
def test_a_damaged_state_that_can_be_made_anew_counts_as_missing(tmp_path: Path, text: str) -> None:
    for state in (COST, ENDING):
        tmp_path.joinpath(state.name).write_text(text)
        assert RunFolder(tmp_path).read(state) is None


@pytest.mark.parametrize("state", [SENT, IDENTITY])
def test_a_damaged_state_that_cannot_be_made_anew_is_refused_in_one_sentence(tmp_path: Path, state: State) -> None:
    tmp_path.joinpath(state.name).write_text("")
    with pytest.raises(StorageError, match=f"{tmp_path}/{state.name}: damaged: [^\n]+$"):
        RunFolder(tmp_path).read(state)


def test_a_folder_named_by_its_settings_gets_its_identity_again(tmp_path: Path) -> None:
    run = config.load("mlp_binary", [f"storage={tmp_path}"]).run
    identity = run.identity("fingerprint")
    for name in (f"mlp-{identity[:8]}", "of-another"):
        claim(tmp_path, name, identity).path_of(IDENTITY).write_text("")
    assert claim(tmp_path, f"mlp-{identity[:8]}", identity).read(IDENTITY) == identity
    with pytest.raises(StorageError, match="of-another/identity: damaged"):
        claim(tmp_path, "of-another", identity)


def test_a_state_is_kept_and_read_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read(COST) is None
    folder.write(COST, Cost(1.5, 2.5))
    assert folder.read(COST) == Cost(1.5, 2.5)
    folder.remove(COST)
    assert os.listdir(tmp_path) == []


# ---- cost


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
