"""What is said of a dataset is what a plain count of its rows says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pipelines.data.dataset import leaked
from pipelines.data.encode import Encoder, Selection, cut
from pipelines.data.splits import SPLITS, Drawn
from pipelines.data.stats import Summary, counted, lengths_figure, markdown, missing_in, row_hashes
from tests.made import InMemory, store_in
from workloads.base import Workload
from workloads.mlp import TabularMLP
from workloads.rnn_text import RecurrentText

DRAWN = Drawn((0.5, 0.25, 0.25), 0)
COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9))
BY_SPLIT = st.dictionaries(st.sampled_from(SPLITS), COUNTS)


@st.composite
def summaries(draw: st.DrawFn) -> Summary:
    used, skipped = draw(st.integers(0, 99)), draw(st.integers(0, 99))
    return Summary(
        read=used + skipped,
        used=used,
        skipped=skipped,
        examples=tuple(draw(st.lists(st.text(max_size=3), max_size=12)))[:10],
        splits=draw(COUNTS),
        classes=draw(BY_SPLIT),
        lengths=draw(BY_SPLIT),
        missing=draw(COUNTS),
        leaked=draw(st.integers(0, 9)),
    )


def of_pieces(folder: Path, workload: Workload, held: dict[str, np.ndarray], piece_rows: int) -> Summary:
    source = InMemory(held)
    rows, store = source.rows(), store_in(folder)
    selection = Selection(source, tuple(held), DRAWN, workload, skip=False)
    pieces = cut(source, rows, piece_rows)
    encoding = workload.fit(raw for _, _, raw in selection.training(pieces))
    told = [Encoder(selection, encoding, store, "work")(piece) for piece in pieces]
    summary = sum((Summary.model_validate(one["summary"]) for one in told), Summary())
    return summary + Summary(leaked=leaked(store, "work", told))


@given(parts=st.lists(summaries(), max_size=4), after=st.integers(0, 4))
def test_parts_may_be_added_in_any_grouping(parts: list[Summary], after: int) -> None:
    whole = sum(parts, Summary())
    assert sum(parts[:after], Summary()) + sum(parts[after:], Summary()) == whole
    assert whole.closes
    assert whole.read == sum(part.read for part in parts)
    assert whole.examples == tuple(example for part in parts for example in part.examples)[:10]
    for split in SPLITS:
        assert whole.classes.get(split, {}) == dict(sum((Counter(part.classes.get(split, {})) for part in parts), Counter()))


def test_a_sum_that_does_not_close_is_found_out() -> None:
    assert not Summary(read=3, used=1, skipped=1).closes


@pytest.mark.parametrize("piece_rows", [1, 70, 1000])
def test_classes_missing_values_and_shared_rows_are_counted_by_split(tmp_path: Path, piece_rows: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 12, (200, 2)).astype(float)
    x[generator.random((200, 2)) < 0.1] = np.nan
    label = np.array([["a", "b", "c"][number] for number in generator.choice(3, 200, p=[0.6, 0.3, 0.1])], dtype=object)
    summary = of_pieces(tmp_path, TabularMLP(), {"x": x[:, 0], "y": x[:, 1], "label": label}, piece_rows)
    rows = {split: DRAWN.rows_of(number, 0, 200, {}).tolist() for number, split in enumerate(SPLITS)}
    assert summary.splits == {split: len(found) for split, found in rows.items()}
    assert summary.classes == {split: dict(Counter(label[found].tolist())) for split, found in rows.items()}
    assert summary.missing == {"x": int(np.isnan(x[:, 0]).sum()), "y": int(np.isnan(x[:, 1]).sum())}
    filled = np.where(np.isnan(x), np.nanmean(x[rows["train"]], axis=0), x).round(6)  # a missing number counts as the training mean
    trained = {tuple(filled[row]) for row in rows["train"]}
    assert summary.leaked == sum(tuple(filled[row]) in trained for row in rows["test"]) > 0
    assert summary.lengths == {}


@pytest.mark.parametrize("piece_rows", [1, 1000])
def test_lengths_are_counted_by_split(tmp_path: Path, piece_rows: int) -> None:
    words = np.random.default_rng(0).integers(0, 12, 150)
    held = {
        "text": np.array([" ".join(["word"] * count) for count in words], dtype=object),
        "label": np.array(["a", "b"] * 75, dtype=object),
    }
    summary = of_pieces(tmp_path, RecurrentText(length=8), held, piece_rows)
    for number, split in enumerate(SPLITS):
        found = DRAWN.rows_of(number, 0, 150, {})
        # a text is its words behind a [CLS], cut to the length
        assert summary.lengths[split] == {str(length): count for length, count in Counter(np.minimum(words[found] + 1, 8).tolist()).items()}


def test_missing_values_of_any_kind_are_counted() -> None:
    raw = {
        "text": np.array(["a", None, "", None], dtype=object),
        "real": np.array([np.nan, 1.0, np.inf, 2.0]),
        "half": np.array([np.nan, np.nan, 1.0, 2.0], np.float16),
        "time": np.array(["NaT", "2020", "2021", "NaT"], "datetime64[ns]"),
        "vectors": np.array([[np.nan, 1.0], [2.0, np.nan], [1.0, 1.0], [np.nan, np.nan]]),
        "whole": np.arange(4),
        "truth": np.array([True, False, True, True]),
        "word": np.array(["a", "nan", "", "b"]),
    }
    assert missing_in(raw) == {"text": 2, "real": 1, "half": 2, "time": 2, "vectors": 4}


def test_values_are_counted_under_their_names() -> None:
    assert counted(np.array([2, 0, 2, 2]), ("x", "y", "z")) == {"x": 1, "z": 3}
    assert counted(np.array([2, 0, 12, 2])) == {"0": 1, "2": 2, "12": 1}


# ---- rows that are the same

KINDS = st.sampled_from(["uint8", "int32", "int64", "float32", "float64", "bool"])
SHAPES = (
    st.tuples(st.integers(1, 8)) | st.tuples(st.integers(1, 8), st.integers(1, 5)) | st.tuples(st.just(3), st.just(2), st.integers(1, 3))
)


@settings(max_examples=60)
@given(column=KINDS.flatmap(lambda kind: SHAPES.flatmap(lambda shape: arrays_of.arrays(kind, shape))), data=st.data())
def test_rows_have_one_hash_if_and_only_if_their_bytes_are_the_same(column: np.ndarray, data: st.DataObject) -> None:
    other = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(column), max_size=len(column))), np.int8)
    twice = {"x": np.concatenate([column, column]), "other": np.concatenate([other, other])}
    hashes = row_hashes(twice).tolist()
    rows = [(value.tobytes(), number.tobytes()) for value, number in zip(twice["x"], twice["other"], strict=True)]
    assert len(set(hashes)) == len(set(rows))
    assert hashes[: len(column)] == hashes[len(column) :]
    assert row_hashes({name: twice[name] for name in reversed(twice)}).tolist() == hashes


def test_many_rows_that_differ_little_have_as_many_hashes() -> None:
    rows = np.arange(200_000)
    assert len(np.unique(row_hashes({"x": rows}))) == 200_000
    assert len(np.unique(row_hashes({"a": rows % 1000, "b": rows // 1000}))) == 200_000
    assert len(np.unique(row_hashes({"x": np.stack([rows % 1000, rows // 1000], 1)}))) == 200_000
    ones = np.eye(2000, dtype=np.uint8)
    assert len(np.unique(row_hashes({"x": np.concatenate([ones, 1 - ones, 2 * ones])}))) == 6000


def test_values_that_change_places_make_another_row() -> None:
    first, second = np.array([1, 2]), np.array([2, 1])
    assert row_hashes({"a": first, "b": second})[0] != row_hashes({"a": second, "b": first})[0]
    assert row_hashes({"x": np.array([[1, 2]])})[0] != row_hashes({"x": np.array([[2, 1]])})[0]


# ---- for people

WHOLE = Summary(
    read=12_345,
    used=12_300,
    skipped=45,
    examples=("made, row 7: bad", "made, row 8: worse"),
    splits={"train": 9_001, "validation": 1_002, "test": 2_297},
    classes={"train": {"cat": 5_003, "dog": 3_998}, "validation": {"cat": 1_002}, "test": {"cat": 1_100, "dog": 1_197}},
    missing={"x": 77, "y": 1_234},
    leaked=19,
)


def page(summary: Summary = WHOLE, **sample: np.ndarray) -> str:
    shown = sample or {"x": np.array([1.5, 2.5])}
    return markdown(summary, source={"a.csv": "abc123"}, fingerprint="f1f2", columns={"features": "double[3]"}, sample=shown)


def test_the_page_tells_every_number() -> None:
    text = page()
    told = [WHOLE.read, WHOLE.used, WHOLE.skipped, WHOLE.leaked, *WHOLE.splits.values(), *WHOLE.missing.values()]
    told += [count for counts in WHOLE.classes.values() for count in counts.values()]
    for number in told:
        assert re.search(rf"(?<![\d,]){number:,}(?!,?\d)", text), number
    for name in ("f1f2", "a.csv", "abc123", "features", "double[3]", "cat", "dog", *WHOLE.examples, "1.5", "2.5"):
        assert name in text


def test_every_table_of_the_page_has_rows_of_one_width() -> None:
    text = page(
        text=np.array(["a | b\nc", "d" * 500], dtype=object), image=np.zeros((2, 3, 3)), file=np.array([b"x" * 5000, None], dtype=object)
    )
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert max(len(line) for line in text.splitlines()) < 300
    assert "bytes of 5,000" in text


def test_a_page_of_no_trouble_tells_none() -> None:
    text = page(Summary(read=3, used=3, splits={"train": 1, "validation": 1, "test": 1}))
    assert "Missing values: none" in text
    assert "left out" not in text
    assert "same input" not in text


def test_lengths_are_drawn_as_shares_of_each_split() -> None:
    figure = lengths_figure(Summary(lengths={"train": {"3": 2, "12": 6}, "test": {"5": 1}}))
    train, test = figure.axes[0].get_lines()
    assert (list(train.get_xdata()), list(train.get_ydata())) == ([3, 12], [0.25, 0.75])
    assert (list(test.get_xdata()), list(test.get_ydata())) == ([5], [1.0])
