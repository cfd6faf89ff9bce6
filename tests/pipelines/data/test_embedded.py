"""The data that every recipe trains on without a download are there, are what they say, and are always the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipelines.data.embedded import EMBEDDED
from pipelines.data.source import joined

DIGEST = """
import hashlib, sys
from pipelines.data.embedded import EMBEDDED
source = EMBEDDED[sys.argv[1]]
from pipelines.data.source import joined
columns = joined(list(source.read(0, source.rows(), source.columns())))
print(hashlib.sha256(repr([(name, column.tolist()) for name, column in columns.items()]).encode()).hexdigest())
"""


@pytest.mark.parametrize("name", EMBEDDED)
def test_columns_are_of_one_length_and_parts_are_parts_of_the_whole(name: str) -> None:
    source = EMBEDDED[name]
    whole = joined(list(source.read(0, source.rows(), source.columns())))
    assert {len(column) for column in whole.values()} == {source.rows()}
    [part] = source.read(100, 105, source.columns()[:1])
    assert list(part) == [source.columns()[0]]
    np.testing.assert_array_equal(part[source.columns()[0]], whole[source.columns()[0]][100:105])


@pytest.mark.parametrize("name", ["seasons", "python_lines", "python_manual"])
def test_every_process_makes_the_same(name: str) -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, name], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_lines_of_python_are_of_two_kinds_and_none_comes_twice() -> None:
    [lines] = EMBEDDED["python_lines"].read(0, 8000, ["text", "label"])
    assert len(set(lines["text"])) == len(lines["text"])
    kinds, counts = np.unique(lines["label"].astype(str), return_counts=True)
    assert kinds.tolist() == ["code", "prose"]
    assert counts[0] == counts[1] > 2000


def test_the_generated_series_has_a_season_of_a_day_and_of_a_week() -> None:
    demand = joined(list(EMBEDDED["seasons"].read(0, 6720, ["demand"])))["demand"]
    spectrum = np.abs(np.fft.rfft(demand - demand.mean()))
    strongest = {round(6720 / frequency) for frequency in np.argsort(spectrum)[-3:]}
    assert strongest == {24, 12, 168}
