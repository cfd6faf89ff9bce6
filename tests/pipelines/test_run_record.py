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

from pipelines.errors import CLUSTER, StorageError, code_of
from pipelines.run_record import RunFolder, check_writable, write_atomically

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


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_atomically(path, "long " * 1000)
    with path.open() as reader:
        write_atomically(path, "short")
        assert reader.read() == "long " * 1000
    assert path.read_text() == "short"
    assert os.listdir(tmp_path) == ["config.yaml"]
