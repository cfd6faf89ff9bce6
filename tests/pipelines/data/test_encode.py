"""A piece of a source: its rows end in their splits, the bad ones are named or left out and nothing else is, and the sums close."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.encode import Encoder, Piece, Selection, cut, training_rows
from pipelines.data.splits import SPLITS, ByColumn, ByKey, Consecutive, Drawn, Splitting
from pipelines.data.stats import Summary
from tests.made import InMemory, store_in
from workloads.base import Arrays, DataError
from workloads.mlp import TabularMLP
from workloads.rnn import Forecaster
from workloads.tasks.forecasting import SeriesEncoding
from workloads.tasks.tabular_classification import TableEncoding

TASK = TabularMLP(classes=("no", "yes"))
ENCODING = TableEncoding(classes=("no", "yes"), features=("x",), mean=(0.0,), deviation=(1.0,))
DRAWN = Drawn((0.6, 0.2, 0.2), 0)
NAMES = {"train": 0, "validation": 1, "test": 2}


def table(rows: int, bad: Sequence[int] = (), **more: np.ndarray) -> InMemory:
    """Row k has x = k, but the bad ones: in turn a number too large, no label, a label outside the classes."""
    x, label = np.arange(rows, dtype=float), np.array(["no", "yes"] * rows, dtype=object)[:rows]
    for turn, row in enumerate(bad):
        if turn % 3 == 0:
            x[row] = 1e300
        else:
            label[row] = None if turn % 3 == 1 else "perhaps"
    return InMemory({"x": x, "label": label} | more)


def selection(source: InMemory, splitting: Splitting = DRAWN, *, skip: bool = True) -> Selection:
    return Selection(source, ("x", "label"), splitting, TASK, skip)


def worked(
    folder: Path, chosen: Selection, piece_rows: int = 1, encoding: Any = ENCODING
) -> tuple[Summary, dict[str, dict[str, np.ndarray]]]:
    """What all pieces of a source tell together, and the rows that they store, by split and column."""
    store = store_in(folder)
    pieces = cut(chosen.source, chosen.source.rows(), piece_rows)
    told = [Encoder(chosen, encoding, store, "work")(piece) for piece in pieces]
    stored: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        paths = [store.get("work", f"{one['parts'][split][0]}.part", folder) for one in told if split in one["parts"]]
        tables = [pa.ipc.open_file(path).read_all() for path in paths]
        whole = pa.concat_tables(tables) if tables else pa.table({})
        stored[split] = {name: np.array(whole[name].to_pylist()) for name in whole.column_names}
    assert not list(store.cache.glob(".work*"))
    return sum((Summary.model_validate(one["summary"]) for one in told), Summary()), stored


def numbers(stored: dict[str, dict[str, np.ndarray]]) -> dict[str, list[int]]:
    """The rows that were stored, told by x = row."""
    return {split: columns["features"].reshape(-1).astype(int).tolist() if columns else [] for split, columns in stored.items()}


# ---- cutting


@given(rows=st.integers(0, 300), batch=st.integers(1, 50), least=st.integers(1, 120))
def test_pieces_are_all_rows_once_and_begin_where_reading_can(rows: int, batch: int, least: int) -> None:
    pieces = cut(InMemory({"x": np.zeros(rows)}, batch), rows, least)
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(rows))
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert all(piece.start % batch == 0 for piece in pieces)
    assert all(piece.stop - piece.start >= least for piece in pieces[:-1])


def test_a_source_that_can_be_entered_nowhere_is_one_piece() -> None:
    assert cut(InMemory({"x": np.zeros(500)}, batch=1000), 500, 10) == [Piece(0, 0, 500)]


# ---- where rows end


def test_every_row_is_stored_once_in_its_split_in_order(tmp_path: Path) -> None:
    summary, stored = worked(tmp_path, selection(table(95), skip=False))
    assert numbers(stored) == {split: DRAWN.rows_of(number, 0, 95, {}).tolist() for split, number in NAMES.items()}
    assert summary.splits == {split: len(rows) for split, rows in numbers(stored).items()}
    assert stored["train"]["label"].tolist() == [row % 2 for row in numbers(stored)["train"]]
    assert (summary.read, summary.used, summary.skipped) == (95, 95, 0)


@given(batch=st.integers(1, 40), piece_rows=st.integers(1, 60))
@settings(max_examples=15)
def test_how_it_is_cut_changes_nothing(tmp_path_factory: pytest.TempPathFactory, batch: int, piece_rows: int) -> None:
    bad = [3, 4, 40, 41, 42, 94]
    whole = InMemory(table(95, bad).held, 95)
    parts = InMemory(whole.held, batch)
    (told, stored), (told_again, stored_again) = (
        worked(tmp_path_factory.mktemp("cut"), selection(source), piece_rows) for source in (whole, parts)
    )
    assert told == told_again
    assert numbers(stored) == numbers(stored_again)


def test_a_piece_may_be_worked_by_another_process_and_its_numbers_be_a_list(tmp_path: Path) -> None:
    encoder = pickle.loads(pickle.dumps(Encoder(selection(table(90)), ENCODING, store_in(tmp_path), "work")))  # noqa: S301
    assert encoder([0, 10, 70])["summary"]["read"] == 60
    assert sorted(path.name for path in (tmp_path / "kept" / "work").iterdir() if path.suffix == ".part") == [
        f"{split}-000000.part" for split in sorted(SPLITS)
    ]


def test_a_piece_that_fails_leaves_nothing_of_its_own_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        Encoder(selection(table(30, [29]), skip=False), ENCODING, store_in(tmp_path), "work")(Piece(0, 0, 30))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- bad rows


@pytest.mark.parametrize("row", [0, 17, 29])
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (0, "column x: 1e+300 is too large, the largest is 3.4e+38; leave a missing number empty"),
        (1, "column label: is missing"),
        (2, "column label: 'perhaps' is outside the classes no, yes"),
    ],
)
def test_a_bad_row_is_an_error_that_says_where_it_is(tmp_path: Path, row: int, kind: int, sentence: str) -> None:
    source = table(30, [(row + 1) % 30] * kind + [row])
    source.held["x"][(row + 1) % 30] = 1.0
    source.held["label"][(row + 1) % 30] = "no"
    with pytest.raises(DataError) as error:
        worked(tmp_path, selection(source, skip=False))
    assert str(error.value).startswith(f"made, row {row:,}: {sentence}")


@settings(max_examples=60)
@given(rows=st.integers(1, 70), data=st.data(), piece_rows=st.integers(1, 40))
def test_skipping_leaves_exactly_the_bad_rows_out_wherever_they_are(
    tmp_path_factory: pytest.TempPathFactory, rows: int, data: st.DataObject, piece_rows: int
) -> None:
    bad = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    summary, stored = worked(tmp_path_factory.mktemp("bad"), selection(table(rows, bad)), piece_rows)
    for split, number in NAMES.items():
        assert numbers(stored)[split] == [row for row in DRAWN.rows_of(number, 0, rows, {}).tolist() if row not in bad]
    assert (summary.read, summary.used, summary.skipped) == (rows, rows - len(bad), len(bad))
    assert summary.closes
    assert [example.split(":")[0] for example in summary.examples] == [f"made, row {row}" for row in sorted(bad)[:10]]


def test_what_was_wrong_is_told_of_the_first_ten(tmp_path: Path) -> None:
    summary, _ = worked(tmp_path, selection(table(95, range(60, 90))), 20)
    assert summary.examples[:3] == (
        "made, row 60: column x: 1e+300 is too large, the largest is 3.4e+38; leave a missing number empty, "
        "and name the columns that are used in model.features",
        f"made, row 61: {summary.examples[1].partition(': ')[2]}",
        "made, row 62: column label: 'perhaps' is outside the classes no, yes",
    )
    assert "column label: is missing" in summary.examples[1]
    assert len(summary.examples) == 10


def test_a_row_whose_split_cannot_be_told_is_bad_as_well(tmp_path: Path) -> None:
    part = np.array(["train", "test", "val", "tset", None] * 6, dtype=object)
    source = table(30, [0, 3], part=part)
    summary, stored = worked(tmp_path, selection(source, ByColumn("part")), 20)
    assert numbers(stored) == {"train": list(range(5, 30, 5)), "validation": list(range(2, 30, 5)), "test": list(range(1, 30, 5))}
    assert (summary.read, summary.used, summary.skipped) == (30, 17, 13)
    assert summary.examples[1:3] == (
        "made, row 3: column part: 'tset' is not a split; write train, validation or test",
        "made, row 4: column part: is missing, so the row cannot be assigned to a split",
    )
    part[part == None] = "test"  # noqa: E711
    with pytest.raises(DataError, match=r"^made, row 3: column part: 'tset' is not a split"):
        worked(tmp_path, selection(table(30, part=part), ByColumn("part"), skip=False), 20)


def test_a_key_that_is_missing_somewhere_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    keys = np.arange(60.0) % 12
    _, stored = worked(tmp_path / "whole", selection(table(60, key=keys.astype(int)), ByKey("key", (0.4, 0.3, 0.3), 0)))
    keys[[5, 33]] = np.nan
    _, some = worked(tmp_path / "some", selection(table(60, key=keys), ByKey("key", (0.4, 0.3, 0.3), 0)))
    assert numbers(some) == {split: [row for row in rows if row not in (5, 33)] for split, rows in numbers(stored).items()}


def test_training_rows_to_learn_from_are_without_those_that_no_encoding_could_take() -> None:
    chosen = selection(table(30, [0, 1, 2, 8]))
    pieces = cut(chosen.source, 30, 10)
    seen = [row for _, _, raw in chosen.training(pieces) for row in raw["x"].astype(int).tolist()]
    # row 2 has a label outside the stated classes, which only the encoding tells
    assert seen == [row for row in DRAWN.rows_of(0, 0, 30, {}).tolist() if row not in (0, 1, 8)]


# ---- sources that do not hold their word


def test_a_source_that_gives_fewer_rows_than_it_promised_is_refused(tmp_path: Path) -> None:
    source = InMemory(table(30).held, promised=47)
    with pytest.raises(DataError, match=r"^made, row 30: there were 10 rows more when they were counted; did it change\?$"):
        worked(tmp_path, selection(source), 20)


class Generous(InMemory):
    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Arrays]:
        return super().read(start, stop + 3, columns)


def test_a_source_that_gives_more_rows_than_it_promised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did it change"):
        worked(tmp_path, selection(Generous(table(30).held, promised=20)), 20)


# ---- ordered rows


@pytest.mark.parametrize("piece_rows", [1, 25, 100])
def test_rows_that_two_splits_look_back_on_are_counted_once(tmp_path: Path, piece_rows: int) -> None:
    task, encoding = Forecaster(window=4, horizon=2, season=3), SeriesEncoding(names=("x",), mean=(0.0,), deviation=(1.0,))
    chosen = Selection(InMemory({"x": np.arange(90.0)}), ("x",), Consecutive((50, 20, 10), context=4), task, skip=False)
    summary, stored = worked(tmp_path, chosen, piece_rows, encoding)
    assert (summary.read, summary.used, summary.skipped) == (80, 80, 0)
    assert summary.splits == {"train": 50, "validation": 24, "test": 14}
    assert {split: columns["values"].reshape(-1).tolist() for split, columns in stored.items()} == {
        "train": list(range(50)),
        "validation": list(range(46, 70)),
        "test": list(range(66, 80)),
    }


# ---- streams


def test_a_stream_gives_the_training_rows_and_keeps_none() -> None:
    chosen = selection(table(95, [1, 50, 51]))
    pieces = cut(chosen.source, 95, 20)
    given_ = [arrays["features"].reshape(-1).astype(int).tolist() for piece in pieces for arrays in training_rows(chosen, ENCODING, piece)]
    assert [row for rows in given_ for row in rows] == [row for row in DRAWN.rows_of(0, 0, 95, {}).tolist() if row not in (1, 50, 51)]


def test_only_the_first_rows_of_a_split_are_stored_where_a_few_are_enough(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    told = Encoder(selection(table(95)), ENCODING, store, "work", ("train",)).head(Piece(0, 0, 95))
    assert list(told["parts"]) == ["train"]
    assert pa.ipc.open_file(store.get("work", "train-000000.part", tmp_path)).read_all().num_rows == len(DRAWN.rows_of(0, 0, 10, {}))


def test_rows_of_splits_that_are_not_kept_are_counted_all_the_same(tmp_path: Path) -> None:
    told = Encoder(selection(table(95)), ENCODING, store_in(tmp_path), "work", SPLITS[1:])(Piece(0, 0, 95))
    assert sorted(told["parts"]) == ["test", "validation"]
    assert told["summary"]["splits"] == {split: len(DRAWN.rows_of(number, 0, 95, {})) for split, number in NAMES.items()}
