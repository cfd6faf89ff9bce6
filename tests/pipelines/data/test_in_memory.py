"""Rows in memory become files: the same rows the same file, and nothing else beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipelines.data import in_memory
from workloads.base import DataError

FRAME = pd.DataFrame({"size": [1.5, 2.5, np.nan], "name": ["a", None, "c"], "label": [0, 1, 0]})


def written(data, folder) -> dict[str, str]:
    return in_memory.sources_of(data, folder, iter)


def test_equal_rows_are_one_file_whoever_holds_them(tmp_path):
    numbers = FRAME[["size", "label"]]
    columns = {name: numbers[name].to_numpy() for name in numbers}
    assert written(numbers, tmp_path) == written(numbers.set_index([[7, 8, 9]]), tmp_path) == written(columns, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_rows_are_another_file(tmp_path):
    assert written(FRAME, tmp_path) != written(FRAME.iloc[::-1], tmp_path)


def test_arrays_of_several_dimensions_are_the_same_npz_at_any_time(tmp_path, monkeypatch):
    rows = {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "label": ["cat", "dog"]}
    [path] = written(rows, tmp_path / "first").values()
    monkeypatch.setattr("time.time", lambda: 2e9)
    [again] = written(rows, tmp_path / "second").values()
    assert path.endswith(".npz")
    assert path.rpartition("/")[2] == again.rpartition("/")[2]
    with np.load(path) as kept:
        np.testing.assert_array_equal(kept["image"], rows["image"])
        assert kept["label"].tolist() == ["cat", "dog"]


def test_paths_are_named_as_they_are_and_nothing_is_written(tmp_path):
    assert written(tmp_path / "a.csv", tmp_path / "given") == {"data.source": str(tmp_path / "a.csv")}
    assert written({"train": "a.csv", "test": "b.csv"}, tmp_path / "given") == {"data.train": "a.csv", "data.test": "b.csv"}
    assert not (tmp_path / "given").exists()


def test_splits_are_sources_of_their_own(tmp_path):
    found = written({"train": FRAME, "test": {"size": [1.0], "label": [1]}}, tmp_path)
    assert list(found) == ["data.train", "data.test"]
    assert len(set(found.values())) == 2


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([1, 2, 3], "data: a list holds no rows that can be read; give a path, a pandas DataFrame"),
        ({"size": [1, 2], "label": [1]}, "data: columns of one length are expected, not size: 2, label: 1"),
        ({"size": 3}, "data: columns of one length are expected, not size: no rows"),
        ({}, "data: columns of one length are expected, not none at all"),
        ({"image": np.array([[object()]]), "label": [1]}, "data: cannot be written as rows"),
        (pd.DataFrame({"mixed": [1, "a", object()]}), "data: cannot be written as rows"),
    ],
)
def test_what_holds_no_rows_is_refused_and_leaves_nothing(tmp_path, data, sentence):
    with pytest.raises(DataError) as raised:
        written(data, tmp_path / "given")
    assert str(raised.value).startswith(sentence)
    assert not list(tmp_path.glob("given/*"))
