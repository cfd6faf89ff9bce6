"""The end of a command, whatever happens while it ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli import ROOT

# the second signal comes while the failure is put into words: with the reading of its sentence
PROGRAM = """
import os, signal, sys
from pipelines.command import run
class Late(Exception):
    def __str__(self):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        return "too late"
def verb(screen):
    raise Late
run(verb, as_json=True)
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_command_says_how_it_ended_takes_neither_words_nor_exit_code(signal):
    done = subprocess.run([sys.executable, "-c", PROGRAM, signal], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 10, done.stderr
    assert done.stderr.startswith("error: Late: too late\n")
    assert json.loads(done.stdout)["exit_code"] == 10
