"""Parts of pieces become shards: in the pieces' order, of a size, and rows that training and test share are counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import joining
from pipelines.data.dataset import Parts
from pipelines.data.joining import Joiner, leaked, shared_out
from pipelines.data.stats import row_hashes
from tests.made import store_in

SIZES = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("train", "validation", "test"), st.integers(1, 150))), max_size=30)


@given(sizes=SIZES)
def test_every_part_is_in_one_shard_in_order_and_no_shard_is_larger_than_it_must_be(sizes: list[dict[str, int]]) -> None:
    told: list[dict[str, Any]] = [
        {"parts": {split: [f"{split}-{number}", size] for split, size in one.items()}} for number, one in enumerate(sizes)
    ]
    bytes_of = {name: size for one in told for name, size in one["parts"].values()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "SHARD_BYTES", 100)
        shards = shared_out(told)
    for split in ("train", "validation", "test"):
        mine = [(number, parts) for name, number, parts in shards if name == split]
        assert [part for _, parts in mine for part in parts] == [one["parts"][split][0] for one in told if split in one["parts"]]
        assert [number for number, _ in mine] == list(range(len(mine)))
        full = [sum(bytes_of[part] for part in parts) for _, parts in mine]
        assert all(size <= 100 or len(parts) == 1 for size, (_, parts) in zip(full, mine, strict=True))
        assert all(size + bytes_of[parts[0]] > 100 for size, (_, parts) in zip(full, mine[1:], strict=False))


def test_a_shard_is_one_record_batch_of_all_rows_of_its_parts(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    x = np.arange(20).reshape(10, 2)
    for number, (start, stop) in enumerate([(0, 3), (3, 4), (4, 10)]):
        with store.workspace() as here:
            with Parts(here) as parts:
                for low in range(start, stop):
                    parts.add("test", {"x": x[low : low + 1]})
            store.put(here / "test", "work", f"test-{number}.part")
    made = Joiner(store, "work", "folder")(["test", 7, [f"test-{number}" for number in range(3)]])
    shard = made["shard"]
    assert (shard["split"], shard["number"], shard["rows"]) == ("test", 7, 10)
    reader = pa.ipc.open_file(store.get("folder", "test-00007.arrow", tmp_path))
    assert reader.num_record_batches == 1
    np.testing.assert_array_equal(reader.get_batch(0)["x"].to_numpy_ndarray(), x)
    assert not list(tmp_path.rglob(".work*"))


@settings(max_examples=40)
@given(train=st.lists(st.lists(st.integers(0, 20))), test=st.lists(st.lists(st.integers(0, 40))))
def test_test_rows_that_are_training_rows_too_are_counted(
    tmp_path_factory: pytest.TempPathFactory, train: list[list[int]], test: list[list[int]]
) -> None:
    store = store_in(tmp_path_factory.mktemp("leaks"))
    told: list[dict[str, Any]] = []
    for split, pieces in (("train", train), ("test", test)):
        for number, rows in enumerate(pieces):
            with store.workspace() as here:
                np.save(here / "x.npy", row_hashes({"x": np.array(rows)}) if rows else np.empty(0, np.uint64))
                store.put(here / "x.npy", "work", f"{split}-{number}.npy")
            told.append({"parts": {split: [f"{split}-{number}", 1]}})
    trained = {row for rows in train for row in rows}
    assert leaked(store, "work", told) == sum(
        count for row, count in Counter(row for rows in test for row in rows).items() if row in trained
    )
