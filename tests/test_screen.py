"""What a person sees on a terminal: our lines, and nothing of what Ray or MLflow print."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading

from tests.cli import ROOT

NOISY = """
import sys, os, time
from pathlib import Path
from pipelines.screen import Screen
from pipelines.tracking.journal import Journal
screen, folder = Screen(), Path(sys.argv[1])
screen.say("before")
with screen.captured(folder / "run.log"), screen.progress(folder / "journal.jsonl", "accuracy") as progress:
    progress.expect(20, 128)
    journal = Journal(folder / "journal.jsonl")
    for step in range(1, 21):
        print("noise of python"); print("noise of python", file=sys.stderr); os.write(2, b"noise of C\\n")
        journal.write(step, {"loss": 1 / step, "val/accuracy": 0.5, "perf/samples_per_second": 1234.0})
        time.sleep(0.1)
    screen.say("within")
print("after")
"""


def on_terminal(arguments) -> str:
    """What a program writes when its output is a terminal."""
    master, slave = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = bytearray()

    def read():
        try:
            while block := os.read(master, 4096):
                seen.extend(block)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=60) == 0, seen.decode()
    reader.join()
    return seen.decode()


def test_a_terminal_shows_progress_and_no_noise(tmp_path):
    seen = on_terminal([NOISY, str(tmp_path)])
    assert "noise" not in seen
    assert re.search(r"step \d+/20  loss 0\.\d+  val/accuracy 0\.5000  1,234 samples/s", seen)
    assert all(word in seen for word in ("before", "within", "after"))
    assert (tmp_path / "run.log").read_text().count("noise of C") == 20


def test_a_job_log_has_plain_lines_without_control_characters(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", NOISY, str(tmp_path)], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-2:]) == ("before", ["within", "after"])
    assert re.fullmatch(r"step \d+/20  loss [\d.]+  val/accuracy 0\.5000  1,234 samples/s  ETA \d s", lines[1])
