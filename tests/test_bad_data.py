"""Bad data, from the recipe to the prepared dataset: what cannot be used is named with its file and row, and nothing else gets in."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data import preparation
from pipelines.data.dataset import Dataset
from pipelines.data.encode import Encoder
from pipelines.errors import RecipeError
from pipelines.run_settings import Run
from tests import cli, runs
from tests.idx import write_idx
from workloads.base import DataError
from workloads.tasks import tokens

ROWS = 120
BAD = (3, 50, 51, 119)
LOOSE = ("data.on_bad_row=skip", "data.max_bad_fraction=0.2")
FAMILIES = {
    "image": ("cnn", ()),
    "table": ("mlp_binary", ("model.features=[x]",)),
    "text": ("lstm_text", ("model.frequency=1",)),
    "language": ("gpt", ("model.tokens=characters", "model.window=8")),
    "series": (
        "lstm",
        ("model.window=10", "model.horizon=2", "model.season=5", "model.time=null", "model.targets=[x]", "model.series=[x]"),
    ),
}


def load(folder: Path, family: str, source: Path | None, *overrides: str) -> Run:
    recipe, settled = FAMILIES[family]
    small = ("train.batch=8", "train.epochs=1", "scale.workers=0", "scale.threads=1")
    return runs.load(folder / "storage", f"data.source={source or 'null'}", *small, *settled, *overrides, recipe=recipe)


def make(run: Run) -> Dataset:
    return preparation.prepare(run, preparation.plan(run), preparation.in_process)


def made_or_refused(run: Run) -> Dataset | str:
    """The dataset, or the sentence of the DataError."""
    try:
        return make(run)
    except DataError as error:
        return str(error)


def kept(run: Run) -> list[str]:
    """What is where datasets are kept, but for what is remembered of files."""
    return sorted({path.name for path in (run.root / "datasets").glob("*")} - {".hashes.json", ".parsed"})


def refusal(run: Run, making: Callable[[Run], object] = make) -> str:
    """The sentence of the DataError; nothing may be left where datasets are kept."""
    with pytest.raises(DataError) as error:
        making(run)
    assert kept(run) == [], "a failed attempt left something behind"
    return str(error.value)


def rows_in(dataset: Dataset, family: str) -> list[int]:
    """The rows that a dataset holds, in order within each split, told by what is in them; a family's files below are written so."""
    found: list[int] = []
    for split in (dataset.train, dataset.validation, dataset.test):
        taken = split.take(np.arange(len(split)))
        if family == "image":
            rows = taken["image"][:, 0, 0, 0].tolist()
        elif family == "table":
            rows = taken["features"][:, 0].round().astype(int).tolist()
        elif family == "text":
            encoding = dataset.manifest.encoding["tokenizer"]
            rows = [_number(tokens.text(encoding, row[1:length])) for row, length in zip(taken["tokens"], taken["length"], strict=True)]
        else:
            rows = [int(line) for line in tokens.text(dataset.manifest.encoding["tokenizer"], taken["token"].tolist()).split()]
        assert rows == sorted(rows)
        found += rows
    return sorted(found)


def _number(text: str) -> int:
    return int(text.replace(" ", ""))


# ---- files, good but for some rows: each writer is given what is in the place of row k


def spaced(row: int) -> str:
    """A row's number, each digit a word."""
    return " ".join(str(row))


def name_of(row: int) -> str:
    return "ab"[row % 2]


def picture(row: int) -> bytes:
    """Its first pixel is the row's number."""
    written = io.BytesIO()
    Image.fromarray((row + np.add.outer(np.arange(12), np.arange(9))).astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


def write_lines(path: Path, lines: Sequence[bytes]) -> Path:
    content = b"".join(line + b"\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def table_csv(path: Path, odd: Mapping[int, bytes]) -> Path:
    return write_lines(path, [b"x,note,label", *(odd.get(row, b"%d,n,%s" % (row, name_of(row).encode())) for row in range(ROWS))])


def table_jsonl(path: Path, odd: Mapping[int, bytes]) -> Path:
    return write_lines(path, [odd.get(row, json.dumps({"x": row, "label": name_of(row)}).encode()) for row in range(ROWS)])


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(dict(columns)), path, row_group_size=40, **options)
    return path


def table_parquet(path: Path, odd: Mapping[int, tuple[str, Any]]) -> Path:
    """`odd`: row -> (column, value); labels may be bytes that are no text."""
    x = [float(row) for row in range(ROWS)]
    label: list[Any] = [name_of(row).encode() for row in range(ROWS)]
    for row, (column, value) in odd.items():
        (x if column == "x" else label)[row] = value
    return write_parquet(path, {"x": x, "label": pa.array(label, pa.binary()).view(pa.string())})


def numbered_parquet(path: Path, odd: Mapping[int, Any]) -> Path:
    """Labels are whole numbers, as most tables have them."""
    return write_parquet(path, {"x": np.arange(ROWS) * 1.0, "label": pa.array([odd.get(row, row % 2) for row in range(ROWS)], pa.int64())})


def numbered_csv(path: Path, odd: Mapping[int, str]) -> Path:
    return write_lines(path, [b"x,label", *(f"{row},{odd.get(row, row % 2)}".encode() for row in range(ROWS))])


def image_folder(path: Path, odd: Mapping[int, bytes]) -> Path:
    for row in range(ROWS):
        file = path / ("cats" if row < ROWS // 2 else "dogs") / f"{row:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(odd.get(row, picture(row)))
    return path


def image_paths(path: Path, odd: Mapping[int, bytes]) -> Path:
    """A table that names pictures in a folder beside it."""
    image_folder(path.parent / "pets", {})
    folder = ["cats" if row < ROWS // 2 else "dogs" for row in range(ROWS)]
    named = [f"pets/{folder[row]}/{row:03}.png,{name_of(row)}".encode() for row in range(ROWS)]
    return write_lines(path, [b"image,label", *(odd.get(row, named[row]) for row in range(ROWS))])


def image_parquet(path: Path, odd: Mapping[int, Any]) -> Path:
    images = pa.array([odd.get(row, picture(row)) for row in range(ROWS)], pa.binary())
    return write_parquet(path, {"image": images, "label": [name_of(row) for row in range(ROWS)]})


def image_npz(path: Path, odd: Mapping[int, int]) -> Path:
    images = np.tile(np.arange(ROWS, dtype=np.uint8)[:, None, None], (1, 8, 8))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=images, label=np.array([odd.get(row, row % 2) for row in range(ROWS)]))
    return path


def image_idx(path: Path, odd: Mapping[int, int]) -> Path:
    images = np.tile(np.arange(ROWS, dtype=np.uint8)[:, None, None], (1, 8, 8))
    return write_idx(path, images, np.array([odd.get(row, row % 2) for row in range(ROWS)], np.uint8))


def text_csv(path: Path, odd: Mapping[int, bytes]) -> Path:
    return write_lines(path, [b"text,label", *(odd.get(row, f"{spaced(row)},{name_of(row)}".encode()) for row in range(ROWS))])


def text_jsonl(path: Path, odd: Mapping[int, bytes]) -> Path:
    return write_lines(path, [odd.get(row, json.dumps({"text": spaced(row), "label": name_of(row)}).encode()) for row in range(ROWS)])


def text_parquet(path: Path, odd: Mapping[int, Any]) -> Path:
    texts = pa.array([odd.get(row, spaced(row).encode()) for row in range(ROWS)], pa.binary()).view(pa.string())
    return write_parquet(path, {"text": texts, "label": [name_of(row) for row in range(ROWS)]})


def lines_txt(path: Path, odd: Mapping[int, bytes]) -> Path:
    return write_lines(path, [odd.get(row, str(row).encode()) for row in range(ROWS)])


def lines_parquet(path: Path, odd: Mapping[int, Any]) -> Path:
    return write_parquet(path, {"text": pa.array([odd.get(row, f"{row}\n") for row in range(ROWS)], pa.string())})


def series_csv(path: Path, odd: Mapping[int, bytes]) -> Path:
    return write_lines(path, [b"when,x", *(odd.get(row, b"%d,%d" % (row, row % 7)) for row in range(ROWS))])


def series_npy(path: Path) -> Path:
    np.save(path, np.arange(ROWS) % 7)
    return path


Writer = Callable[[Path, Mapping[int, Any]], Path]
LATIN = "1,caf\u00e9,a".encode("latin-1")
CUT = picture(50)[:-30]
A_B = "model.classes=[a, b]"
NUMBERED = "model.classes=['0', '1']"
BAD_ROWS: list[tuple[str, Writer, str, Any, str, str]] = [
    ("table", table_csv, "t.csv", b"50,n", "has 2 values, but the header has 3", ""),
    ("table", table_csv, "t.csv.gz", b"50,n,a,b", "has 4 values, but the header has 3", ""),
    ("table", table_csv, "t.csv", LATIN, "its column 'note' is not UTF-8", ""),
    ("table", table_csv, "t.csv", b"many,n,a", "column x: 'many' is not a number", ""),
    ("table", table_csv, "t.csv", b"inf,n,a", "column x: inf is too large, the largest is", ""),
    ("table", table_csv, "t.csv", b"1e40,n,a", "column x: 1e+40 is too large, the largest is", ""),
    ("table", table_csv, "t.csv", b"50,n,", "column label: is missing", ""),
    ("table", table_csv, "t.csv", b"50,n,c", "column label: 'c' is outside the classes a, b", A_B),
    ("table", numbered_csv, "t.csv", "", "column label: is missing", NUMBERED),
    ("table", numbered_csv, "t.csv", "7", "column label: 7 is outside the classes 0, 1", NUMBERED),
    ("table", table_jsonl, "t.jsonl", b'{"x": 50', "is no JSON object", ""),
    ("table", table_jsonl, "t.jsonl", b'{"x": 50, "x": 51, "label": "a"}', "has the key 'x' twice", ""),
    ("table", table_jsonl, "t.jsonl.gz", b'{"x": 50, "label": "\xe9"}', "is not UTF-8 at byte", ""),
    ("table", table_jsonl, "t.jsonl", b'{"x": [50], "label": "a"}', "holds list<item: int64> in 'x', but the rows before hold int64", ""),
    ("table", table_jsonl, "t.jsonl", b'{"x": -Infinity, "label": "a"}', "column x: -inf is too large", ""),
    ("table", table_jsonl, "t.jsonl", b'{"x": 50}', "column label: is missing", ""),
    ("table", table_parquet, "t.parquet", ("x", np.inf), "column x: inf is too large", ""),
    ("table", table_parquet, "t.parquet", ("label", None), "column label: is missing", ""),
    ("table", table_parquet, "t.parquet", ("label", b"c"), "column label: 'c' is outside the classes a, b", A_B),
    ("table", table_parquet, "t.parquet", ("label", b"\xff"), "column label: text that is not UTF-8 at byte 0", ""),
    ("table", numbered_parquet, "t.parquet", None, "column label: is missing", ""),
    ("table", numbered_parquet, "t.parquet", None, "column label: is missing", NUMBERED),
    ("table", numbered_parquet, "t.parquet", -1, "column label: -1 is outside the classes 0, 1", NUMBERED),
    ("image", image_folder, "pets", CUT, "a truncated or damaged picture", ""),
    ("image", image_folder, "pets", b"%PDF-1.7 and so on", "not a picture, or one damaged at its beginning", ""),
    ("image", image_folder, "pets", b"", "a picture of zero bytes", ""),
    ("image", image_paths, "t.csv", b"pets/none.png,a", "column image: pets/none.png: ", ""),
    ("image", image_paths, "t.csv", b"../../secret.png,a", "'../../secret.png' names no file below the table's folder", ""),
    ("image", image_parquet, "t.parquet", CUT, "a truncated or damaged picture", ""),
    ("image", image_parquet, "t.parquet", b"", "a picture of zero bytes", ""),
    ("image", image_parquet, "t.parquet", None, "column image: is missing", ""),
    ("image", image_npz, "t.npz", 9, "column label: 9 is outside the classes 0, 1", NUMBERED),
    ("image", image_idx, "idx", 9, "column label: 9 is outside the classes 0, 1", NUMBERED),
    ("text", text_csv, "t.csv", b"5 0,a,b", "has 3 values, but the header has 2", ""),
    ("text", text_csv, "t.csv", LATIN[2:], "its column 'text' is not UTF-8", ""),
    ("text", text_csv, "t.csv", b"5 0,", "column label: is missing", ""),
    ("text", text_jsonl, "t.jsonl", b'{"label": "a"}', "column text: is missing; give a string", ""),
    ("text", text_jsonl, "t.jsonl", b'{"text": 50, "label": "a"}', "in 'text', but the rows before hold string", ""),
    ("text", text_jsonl, "t.jsonl", b'{"text": "5 0", "label": "c"}', "column label: 'c' is outside the classes a, b", A_B),
    ("text", text_parquet, "t.parquet", None, "column text: is missing", ""),
    ("text", text_parquet, "t.parquet", b"caf\xe9", "column text: text that is not UTF-8 at byte 3", ""),
    ("language", lines_txt, "t.txt", b"caf\xe9", "not UTF-8 at byte", ""),
    ("language", lines_txt, "t.txt.gz", b"\xff\xfe5\0", "not UTF-8 at byte", ""),
    ("language", lines_parquet, "t.parquet", None, "column text: is missing", ""),
]
each_bad_row = pytest.mark.parametrize(("family", "write", "name", "value", "sentence", "override"), BAD_ROWS)


def place(name: str, row: int) -> str:
    """Where a person finds a row."""
    if name == "pets":
        return f"{'cats' if row < ROWS // 2 else 'dogs'}/{row:03}.png"
    return f"{'t-images-idx3-ubyte.gz' if name == 'idx' else name}, row {row}"


@each_bad_row
def test_a_bad_row_is_named_with_its_file(
    tmp_path: Path, family: str, write: Writer, name: str, value: Any, sentence: str, override: str
) -> None:
    run = load(tmp_path, family, write(tmp_path / name, {50: value}), *filter(None, [override]))
    said = refusal(run)
    assert said.startswith(place(name, 50))
    assert sentence in said


@each_bad_row
def test_bad_rows_are_left_out_and_no_others(
    tmp_path: Path, family: str, write: Writer, name: str, value: Any, sentence: str, override: str
) -> None:
    source, settled = write(tmp_path / name, dict.fromkeys(BAD, value)), [*filter(None, [override])]
    dataset = make(load(tmp_path, family, source, *LOOSE, *settled))
    summary = dataset.manifest.summary
    assert rows_in(dataset, family) == [row for row in range(ROWS) if row not in BAD]
    assert (summary.read, summary.used, summary.skipped) == (ROWS, ROWS - 4, 4)
    assert family == "language" or sum(summary.splits.values()) == summary.used
    assert [example.split(": ")[0] for example in summary.examples] == [place(name, row) for row in BAD]
    assert all(sentence in example for example in summary.examples)
    if family != "language":
        assert len(dataset.manifest.encoding["classes"]) == 2


@pytest.mark.parametrize(
    ("family", "write", "name", "value"),
    [
        ("table", table_csv, "t.csv", b"50,n"),
        ("table", table_parquet, "t.parquet", ("x", np.inf)),
        ("image", image_folder, "pets", CUT),
        ("text", text_jsonl, "t.jsonl", b"{"),
        ("language", lines_txt, "t.txt", b"caf\xe9"),
    ],
)
def test_more_bad_rows_than_allowed_are_refused_also_where_others_had_allowed_them(
    tmp_path: Path, family: str, write: Writer, name: str, value: Any
) -> None:
    source = write(tmp_path / name, dict.fromkeys(BAD, value))
    limit = ("data.on_bad_row=skip", "data.max_bad_fraction=0.03")
    before = refusal(load(tmp_path / "before", family, source, *limit))
    make(load(tmp_path, family, source, *LOOSE))
    strict = load(tmp_path, family, source, *limit)
    assert preparation.plan(strict).ready
    with pytest.raises(DataError) as error:
        make(strict)
    assert str(error.value) == before
    assert f"{source}: 4 of 120 rows cannot be used, more than data.max_bad_fraction=0.03 allows; the first of them:" in before
    assert [line.split(": ")[0] for line in before.splitlines()[1:]] == [place(name, row) for row in BAD]


def test_the_first_ten_bad_rows_are_told_in_order(tmp_path: Path) -> None:
    bad = range(5, 105, 5)
    source = table_csv(tmp_path / "t.csv", dict.fromkeys(bad, b"inf,n,a"))
    summary = make(load(tmp_path, "table", source, *LOOSE)).manifest.summary
    assert summary.skipped == 20
    assert [example.split(":")[0] for example in summary.examples] == [f"t.csv, row {row}" for row in range(5, 55, 5)]


# ---- series: no row of them can be left out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"50", "has 1 value, but the header has 2"),
        (b"50,1,2", "has 3 values, but the header has 2"),
        (b"caf\xe9,1", "its column 'when' is not UTF-8"),
        (b"50,", "column x: "),
        (b"50,nan", "column x: "),
        (b"50,inf", "column x: "),
        (b"50,much", "column x: 'much' is not a number"),
    ],
)
def test_a_bad_row_of_a_series_is_named_and_never_skipped(tmp_path: Path, line: bytes, sentence: str) -> None:
    source = series_csv(tmp_path / "t.csv", {50: line})
    said = refusal(load(tmp_path, "series", source))
    assert said.startswith("t.csv, row 50: ")
    assert sentence in said
    with pytest.raises(RecipeError, match=r"data\.on_bad_row=skip: rows of a series follow one another in time, so none can be left out"):
        preparation.plan(load(tmp_path, "series", source, "data.on_bad_row=skip"))


def test_a_series_that_goes_back_in_time_is_refused(tmp_path: Path) -> None:
    source = series_csv(tmp_path / "t.csv", {50: b"48,1"})
    assert refusal(load(tmp_path, "series", source, "model.time=when")).startswith("t.csv, row 50: column when: 48 follows 49")


# ---- missing numbers are no bad rows


@pytest.mark.parametrize("policy", [(), LOOSE])
@pytest.mark.parametrize("line", [b"nan,n,a", b",n,a"])
def test_a_missing_number_is_used_and_counted(tmp_path: Path, line: bytes, policy: tuple[str, ...]) -> None:
    summary = make(load(tmp_path, "table", table_csv(tmp_path / "t.csv", dict.fromkeys(BAD, line)), *policy)).manifest.summary
    assert (summary.read, summary.used, summary.missing) == (ROWS, ROWS, {"x": 4})


# ---- whole columns

NO_ROW = "needs two classes, but every training row is labelled"


@pytest.mark.parametrize("policy", [(), LOOSE])
@pytest.mark.parametrize(
    ("family", "columns", "sentence"),
    [
        ("table", {"x": pa.nulls(ROWS, pa.float64()), "label": ["a", "b"] * 60}, "column x: is missing in every training row"),
        ("table", {"x": pa.nulls(ROWS), "label": ["a", "b"] * 60}, "column x: is missing in every training row"),
        ("table", {"x": [1.0] * ROWS, "label": pa.nulls(ROWS)}, "t.parquet, row 0: column label: is missing"),
        ("table", {"x": [1.0] * ROWS, "label": ["a"] * ROWS}, f"{NO_ROW} 'a'"),
        ("table", {"x": ["one"] * ROWS, "label": ["a", "b"] * 60}, "t.parquet, row 0: column x: 'one' is not a number"),
        ("table", {"x": [[1.0, 2.0]] * ROWS, "label": ["a", "b"] * 60}, "column x: a value of it is an array of (2,), not a number"),
        ("table", {"x": [1.0] * ROWS, "label": [[0, 1]] * ROWS}, "column label: a value of it is an array of (2,), not a class's name"),
        ("table", {"x": [1.0] * ROWS, "label": [[0], [0, 1]] * 60}, "row 0: column label: [0] is not a class's name or number"),
        ("table", {"x": [1.0] * ROWS, "label": [{"is": "a"}, {"is": "b"}] * 60}, "row 0: column label: {'is': 'a'} is not a class's name"),
        ("image", {"image": pa.nulls(ROWS, pa.binary()), "label": ["a", "b"] * 60}, "t.parquet, row 0: column image: is missing"),
        ("image", {"image": [picture(1)] * ROWS, "label": pa.nulls(ROWS, pa.int64())}, "t.parquet, row 0: column label: is missing"),
        ("image", {"image": [picture(1)] * ROWS, "label": [3] * ROWS}, f"{NO_ROW} '3'"),
        ("image", {"image": [1.5] * ROWS, "label": [0, 1] * 60}, "not"),
        ("image", {"image": [[[1.5]]] * ROWS, "label": [0, 1] * 60}, "images must be whole numbers from 0 to 255, but a pixel is 1.5"),
        ("text", {"text": pa.nulls(ROWS, pa.string()), "label": ["a", "b"] * 60}, "t.parquet, row 0: column text: is missing"),
        ("text", {"text": list(range(ROWS)), "label": ["a", "b"] * 60}, "t.parquet, row 0: column text: 0 is not a text"),
        ("text", {"text": ["a text"] * ROWS, "label": ["b"] * ROWS}, f"{NO_ROW} 'b'"),
        ("language", {"text": pa.nulls(ROWS, pa.string())}, "t.parquet, row 0: column text: is missing"),
        ("language", {"text": list(range(ROWS))}, "t.parquet, row 0: column text: 0 is not a text"),
    ],
)
def test_a_column_that_is_bad_as_a_whole_is_refused_under_either_policy(
    tmp_path: Path, family: str, columns: dict[str, Any], sentence: str, policy: tuple[str, ...]
) -> None:
    said = refusal(load(tmp_path, family, write_parquet(tmp_path / "t.parquet", columns), *policy))
    assert sentence in said
    assert said.startswith("t")


@pytest.mark.parametrize("values", [pa.nulls(ROWS, pa.float64()), pa.nulls(ROWS), pa.array(["much"] * ROWS), pa.array([[1.0]] * ROWS)])
def test_a_series_without_numbers_is_refused(tmp_path: Path, values: pa.Array) -> None:
    assert "column x: " in refusal(load(tmp_path, "series", write_parquet(tmp_path / "t.parquet", {"x": values})))


def test_one_class_is_refused_though_two_are_stated(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "t.parquet", {"x": np.arange(ROWS) * 1.0, "label": ["a"] * ROWS})
    assert f"{NO_ROW} 'a'" in refusal(load(tmp_path, "table", source, A_B))


@pytest.mark.parametrize("write", [numbered_csv, numbered_parquet])
def test_whole_numbers_stay_the_names_of_classes_where_a_label_is_missing(tmp_path: Path, write: Writer) -> None:
    source = write(tmp_path / f"t.{write.__name__.removeprefix('numbered_')}", {50: "" if write is numbered_csv else None})
    assert make(load(tmp_path, "table", source, *LOOSE)).manifest.encoding["classes"] == ["0", "1"]


def test_files_of_which_one_spells_its_labels_have_the_same_classes(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    numbered_csv(folder / "a.csv", {})
    numbered_csv(folder / "b.csv", {50: "two", 51: "two", 52: "two"})
    assert make(load(tmp_path, "table", folder)).manifest.encoding["classes"] == ["0", "1", "two"]


# ---- empty splits

GOOD: dict[str, tuple[str, Writer]] = {
    "image": ("t.parquet", image_parquet),
    "table": ("t.csv", table_csv),
    "text": ("t.jsonl", text_jsonl),
    "language": ("t.txt", lines_txt),
    "series": ("t.csv", series_csv),
}


@pytest.mark.parametrize("family", GOOD)
def test_a_split_without_rows_is_named(tmp_path: Path, family: str) -> None:
    name, write = GOOD[family]
    shares = "data.splits={train: 0.9998, validation: 0.0001, test: 0.0001}"
    said = refusal(load(tmp_path, family, write(tmp_path / name, {}), shares))
    assert "validation split" in said
    assert name in said


def test_a_split_that_no_row_names_is_told(tmp_path: Path) -> None:
    columns = {"x": np.arange(ROWS) * 1.0, "label": ["a", "b"] * 60, "part": ["train", "train", "val"] * 40}
    source = write_parquet(tmp_path / "t.parquet", columns)
    assert "t.parquet: the test split has no rows" in refusal(load(tmp_path, "table", source, "data.splits.column=part"))


def test_a_row_whose_split_cannot_be_told_is_named_or_left_out(tmp_path: Path) -> None:
    part: list[str | None] = ["train", "test", "val"] * 40
    part[50], part[70] = None, "trian"
    columns = {"x": np.arange(ROWS) * 1.0, "label": [name_of(row) for row in range(ROWS)], "part": part}
    source = write_parquet(tmp_path / "t.parquet", columns)
    assert refusal(load(tmp_path, "table", source, "data.splits.column=part")).startswith("t.parquet, row 50: column part: is missing")
    dataset = make(load(tmp_path, "table", source, "data.splits.column=part", *LOOSE))
    assert rows_in(dataset, "table") == [row for row in range(ROWS) if row not in (50, 70)]
    assert "row 70: column part: 'trian' is not a split; write train, validation or test" in dataset.manifest.summary.examples[1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_file_without_rows_that_is_given_as_a_split_is_told(tmp_path: Path, split: str) -> None:
    files = {name: table_csv(tmp_path / f"{name}.csv", {}) for name in ("train", "validation", "test")}
    write_lines(files[split], [b"x,note,label"])
    run = load(tmp_path, "table", None, *(f"data.{name}={path}" for name, path in files.items()))
    with pytest.raises((DataError, RecipeError)) as error:
        make(run)
    assert f"{split}" in str(error.value)
    assert kept(run) == []


# ---- column names


def columns_twice(path: Path) -> Path:
    if path.suffix in (".csv", ".tsv"):
        between = b"\t" if path.suffix == ".tsv" else b","
        return write_lines(path, [between.join([b"x", b"x", b"label"]), *([between.join([b"1", b"2", b"a"])] * ROWS)])
    if path.suffix == ".jsonl":
        return write_lines(path, [b'{"x": 1, "x": 2, "label": "a"}'] * ROWS)
    if path.suffix == ".npz":
        np.savez(path, x=np.arange(ROWS), y=np.arange(ROWS))
        path.write_bytes(path.read_bytes().replace(b"y.npy", b"x.npy"))
        return path
    table = pa.Table.from_arrays([pa.array(np.arange(ROWS)), pa.array(np.arange(ROWS)), pa.array(["a", "b"] * 60)], ["x", "x", "label"])
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return path
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.arrow", "t.npz"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, name: str) -> None:
    said = refusal(load(tmp_path, "table", columns_twice(tmp_path / name)))
    assert said.startswith(name)
    assert "'x' more than once" in said or "key 'x' twice" in said


# ---- whole files


def arrow_file(path: Path, family_columns: Mapping[str, Any], **options: Any) -> Path:
    pyarrow.feather.write_feather(pa.table(dict(family_columns)), path, **options)
    return path


TABLE = {"x": np.arange(ROWS) * 1.0, "label": [name_of(row) for row in range(ROWS)]}
FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "t.parquet": ("table", lambda path: write_parquet(path, TABLE)),
    "t.arrow": ("table", lambda path: arrow_file(path, TABLE, compression="uncompressed")),
    "t.feather": ("table", lambda path: arrow_file(path, TABLE)),
    "t.csv": ("table", lambda path: table_csv(path, {})),
    "t.csv.gz": ("table", lambda path: table_csv(path, {})),
    "t.jsonl": ("table", lambda path: table_jsonl(path, {})),
    "t.jsonl.gz": ("table", lambda path: table_jsonl(path, {})),
    "t.npz": ("image", lambda path: image_npz(path, {})),
    "t.txt.gz": ("language", lambda path: lines_txt(path, {})),
    "x.npy": ("series", lambda path: series_npy(path)),
    "t-images-idx3-ubyte.gz": ("image", lambda path: image_idx(path.parent, {})),
}
PLAIN = ("t.csv", "t.jsonl")  # of plain text nothing says what it is and where it ends, so any part of it is one


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_less(content: bytes) -> bytes:
    return content[:-1]


def emptied(content: bytes) -> bytes:
    return b""


def another(content: bytes) -> bytes:
    return b"%PDF-1.7\n" + content[9:]


def garbled(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(content))


DAMAGED = [
    (name, how) for name in FILES for how in (halved, one_less, emptied, another, garbled) if name not in PLAIN or how in (emptied, garbled)
]


@pytest.mark.parametrize("policy", [(), LOOSE])
@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], policy: tuple[str, ...]) -> None:
    family, write = FILES[name]
    source = write(tmp_path / name)
    source.write_bytes(damage(source.read_bytes()))
    assert name in refusal(load(tmp_path, family, source, *policy))


@pytest.mark.parametrize("policy", [(), LOOSE])
@pytest.mark.parametrize(
    ("name", "encoding"),
    [(name, encoding) for name in ("t.csv", "t.jsonl", "t.txt.gz") for encoding in ("utf-16", "utf-32")]
    + [("t.csv.gz", "utf-16-be"), ("t.jsonl.gz", "utf-16-le")],  # which begin with no mark; of a text that alone would tell
)
def test_a_file_in_another_encoding_is_named(tmp_path: Path, name: str, encoding: str, policy: tuple[str, ...]) -> None:
    family, write = FILES[name]
    source = write(tmp_path / name)
    unpacked = gzip.decompress(source.read_bytes()) if name.endswith(".gz") else source.read_bytes()
    encoded = unpacked.decode().encode(encoding)
    source.write_bytes(gzip.compress(encoded) if name.endswith(".gz") else encoded)
    assert name in refusal(load(tmp_path, family, source, *policy))


@pytest.mark.parametrize("damage", [emptied, another, halved])
def test_damaged_labels_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    source = image_idx(tmp_path, {})
    labels = tmp_path / "t-labels-idx1-ubyte.gz"
    labels.write_bytes(damage(labels.read_bytes()))
    assert refusal(load(tmp_path, "image", source)).startswith("t-labels-idx1-ubyte.gz: ")


# ---- files that change or disappear under way


def rewritten(source: Path) -> None:
    """As long as before, with other rows."""
    content = bytearray(source.read_bytes())
    for byte in range(len(content) // 3, len(content) // 3 + 8):
        content[byte] ^= 1
    source.write_bytes(bytes(content))


def shortened(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:-40])


def exchanged(source: Path) -> None:
    """Another file of the same kind takes its place."""
    aside = source.with_name(f"aside-{source.name}")
    aside.write_bytes(source.read_bytes() + b"\n")
    os.replace(aside, source)


CHANGES = [
    *((change, moment) for change in (rewritten, Path.unlink) for moment in ("planned", "between", "after")),
    *((shortened, "between"), (exchanged, "planned")),
]


def spoiling(change: Callable[[Path], None], source: Path, moment: str) -> preparation.Each:
    """Pieces are worked one after another; between: the source is changed before the last, after: behind it."""

    def each(work: Callable[[Any], Any], pieces: Sequence[Any]) -> list[Any]:
        if not isinstance(work, Encoder):
            return preparation.in_process(work, pieces)
        done = []
        for number, piece in enumerate(pieces):
            if moment == "between" and number == len(pieces) - 1:
                change(source)
            done.append(work(piece))
        if moment == "after":
            change(source)
        return done

    return each


def parts_csv(folder: Path) -> Path:
    for name in ("a.csv", "b.csv"):
        table_csv(folder / name, {})
    return folder


def saved(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_dict(TABLE).save_to_disk(str(folder))
    return folder


FOLDERS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "pets": ("image", lambda path: image_folder(path, {}), "dogs/119.png"),
    "parts": ("table", parts_csv, "b.csv"),
    "saved": ("table", saved, "data-00000-of-00001.arrow"),
    "t.csv": ("image", lambda path: image_paths(path, {}), "../pets/dogs/119.png"),
}
CHANGING = [(name, *made, "") for name, made in FILES.items()] + [(name, *made) for name, made in FOLDERS.items()]


@pytest.mark.parametrize(("change", "moment"), CHANGES)
@pytest.mark.parametrize(("name", "family", "write", "inside"), CHANGING, ids=[f"{case[0]}-{case[1]}" for case in CHANGING])
def test_a_file_that_changes_or_disappears_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    family: str,
    write: Callable[[Path], Path],
    inside: str,
    change: Callable[[Path], None],
    moment: str,
) -> None:
    monkeypatch.setattr(preparation, "_PIECE_ROWS", 30)
    source = write(tmp_path / name)
    changing = Path(os.path.normpath(source / inside))
    run = load(tmp_path, family, source)
    plan = preparation.plan(run)
    if moment == "planned":
        change(changing)
    said = refusal(run, lambda run: preparation.prepare(run, plan, spoiling(change, changing, moment)))
    # a picture by the row that names it; of many files, or those that a library made, all together
    together = ("t.csv, row 119: ", f"changed while {source} was being read", f"{source}: has changed")
    assert changing.name in said or any(told in said for told in together)


def test_pieces_are_several_so_that_a_change_between_them_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_PIECE_ROWS", 30)
    assert len(preparation.plan(load(tmp_path, "table", write_parquet(tmp_path / "t.parquet", TABLE))).pieces) == 3


# ---- as the user meets it


def test_the_command_names_file_and_row_and_exits_with_13(tmp_path: Path) -> None:
    source = table_csv(tmp_path / "t.csv", {50: b"50,n,a,b"})
    arguments = [f"data.source={source}", "model.features=[x]", *cli.CPU_QUICK]
    code, told, said = cli.raylway("prepare", "mlp_binary", *arguments, "--json", cwd=tmp_path)
    assert (code, told["exit_code"], told["status"]) == (13, 13, "failed")
    assert "t.csv, row 50: has 4 values, but the header has 3" in told["error"]
    assert len(said.splitlines()) <= 25
    assert "Traceback" not in said


def test_training_stops_with_13_where_too_many_rows_are_bad_and_tells_ten(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "pets", dict.fromkeys(range(40, 60), CUT))
    arguments = [f"data.source={source}", "data.on_bad_row=skip", "train.batch=8", "train.steps=2", *cli.CPU_QUICK]
    code, told, said = cli.raylway("train", "cnn", *arguments, "--json", cwd=tmp_path)
    assert (code, told["exit_code"]) == (13, 13)
    assert "20 of 120 rows cannot be used, more than data.max_bad_fraction=0.01 allows" in told["error"]
    assert [f"cats/{row:03}.png" in said for row in range(40, 51)] == [True] * 10 + [False]
    assert len(said.splitlines()) <= 25


def test_rows_left_out_are_told_and_the_command_succeeds(tmp_path: Path) -> None:
    source = lines_txt(tmp_path / "t.txt", {50: b"caf\xe9"})
    settled = [f"data.source={source}", "data.on_bad_row=skip", "train.batch=8", *FAMILIES["language"][1], *cli.CPU_QUICK]
    code, told, said = cli.raylway("prepare", "gpt", *settled, "--json", cwd=tmp_path)
    assert code == 0, said
    assert (told["summary"]["read"], told["summary"]["used"], told["summary"]["skipped"]) == (ROWS, ROWS - 1, 1)
    assert "t.txt, row 50: not UTF-8 at byte" in said


# ---- files made at random: many kinds of bad rows at once

MIXTURES: dict[str, tuple[Writer, dict[str, Callable[[int], Any]]]] = {
    "t.csv": (
        table_csv,
        {
            "short": lambda row: b"%d,n" % row,
            "long": lambda row: b"%d,n,a,a" % row,
            "latin": lambda row: b"%d,caf\xe9,a" % row,
            "word": lambda row: b"many,n,a",
            "infinite": lambda row: b"-inf,n,a",
            "outside": lambda row: b"%d,n,c" % row,
            "empty": lambda row: b"%d,n," % row,
        },
    ),
    "t.jsonl": (
        table_jsonl,
        {
            "broken": lambda row: b'{"x": %d' % row,
            "no object": lambda row: b"[%d]" % row,
            "twice": lambda row: b'{"x": %d, "label": "a", "label": "b"}' % row,
            "latin": lambda row: b'{"x": %d, "label": "\xe9"}' % row,
            "clash": lambda row: b'{"x": {"is": %d}, "label": "a"}' % row,
            "infinite": lambda row: b'{"x": Infinity, "label": "a"}',
            "outside": lambda row: b'{"x": %d, "label": "c"}' % row,
            "null": lambda row: b'{"x": %d, "label": null}' % row,
        },
    ),
    "t.parquet": (
        table_parquet,
        {
            "infinite": lambda row: ("x", np.inf),
            "large": lambda row: ("x", -1e39),
            "outside": lambda row: ("label", b"c"),
            "null": lambda row: ("label", None),
            "latin": lambda row: ("label", b"\xe9"),
        },
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_rows_are_bad_exactly_the_others_are_used(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    write, kinds = MIXTURES[name]
    bad = data.draw(st.dictionaries(st.integers(1, ROWS - 1), st.sampled_from(sorted(kinds)), max_size=12), label="bad rows")
    folder = tmp_path_factory.mktemp("mixture")
    source = write(folder / name, {row: kinds[kind](row) for row, kind in bad.items()})
    dataset = make(load(folder, "table", source, A_B, *LOOSE))
    summary = dataset.manifest.summary
    assert rows_in(dataset, "table") == [row for row in range(ROWS) if row not in bad]
    assert (summary.read, summary.used, summary.skipped) == (ROWS, ROWS - len(bad), len(bad))
    assert {example.split(":")[0] for example in summary.examples} <= {f"{name}, row {row}" for row in bad}
    assert len(set(summary.examples)) == min(len(bad), 10)


# ---- files damaged at random


def damaged(content: bytes, cut: float | None, flips: Iterable[tuple[float, int]]) -> bytes:
    """`content` up to a share of its length, some bits of it flipped."""
    found = bytearray(content if cut is None else content[: int(cut * len(content))])
    for place, bit in flips:
        if found:
            found[int(place * len(found))] ^= 1 << bit
    return bytes(found)


share = st.floats(0, 1, exclude_max=True)
DAMAGE = st.one_of(
    st.tuples(share, st.just(())),
    st.tuples(st.none(), st.lists(st.tuples(share, st.integers(0, 7)), min_size=1, max_size=3)),
)
CHECKED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "t.parquet": ("table", lambda path: write_parquet(path, TABLE, write_page_checksum=True)),
    "t.csv.gz": ("table", lambda path: table_csv(path, {})),
    "t.jsonl.gz": ("table", lambda path: table_jsonl(path, {})),
    "t.txt.gz": ("language", lambda path: lines_txt(path, {})),
    "t.npz": ("image", lambda path: image_npz(path, {})),
    "t-images-idx3-ubyte.gz": ("image", lambda path: image_idx(path.parent, {})),
    "pets": ("image", lambda path: image_folder(path, {})),
}


@pytest.fixture(scope="module", params=CHECKED)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, bytes, Dataset]:
    """A family, a source of it, a file of that and its content, and the dataset that it gives."""
    family, write = CHECKED[request.param]
    folder = tmp_path_factory.mktemp("whole")
    source = write(folder / request.param)
    file = source / "dogs" / "077.png" if source.is_dir() else source
    return family, source, file, file.read_bytes(), make(load(folder, family, source))


@settings(max_examples=30)
@given(damage=DAMAGE)
def test_damage_anywhere_is_told_or_changes_no_row(
    tmp_path_factory: pytest.TempPathFactory,
    whole: tuple[str, Path, Path, bytes, Dataset],
    damage: tuple[float | None, Sequence[tuple[float, int]]],
) -> None:
    family, source, file, content, undamaged = whole
    file.write_bytes(damaged(content, *damage))
    assume(file.read_bytes() != content)
    run = load(tmp_path_factory.mktemp("damage"), family, source)
    found = made_or_refused(run)
    if isinstance(found, str):
        assert file.name in found
        assert kept(run) == []
    else:
        for split in ("train", "validation", "test"):
            ours, theirs = (getattr(one, split).take(np.arange(len(getattr(one, split)))) for one in (found, undamaged))
            assert all((ours[column] == theirs[column]).all() for column in ours)
