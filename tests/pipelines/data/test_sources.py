"""What a recipe names leads to its reader, or is refused as it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.data.source import Source, SplitSources, joined
from pipelines.data.sources import ReadOptions, open_source, open_splits
from tests.idx import pictures, write_idx
from workloads.base import DataError

IMAGES, LABELS = pictures(50)
TABLE = pd.DataFrame({"x": np.arange(6.0), "text": [f"text {row}" for row in range(6)]})


@pytest.fixture
def options(tmp_path: Path) -> ReadOptions:
    return ReadOptions(tmp_path / "scratch")


def read_all(source: Source) -> dict[str, np.ndarray]:
    return dict(joined(list(source.read(0, source.rows(), source.columns()))))


def refusal(text: object, options: ReadOptions) -> str:
    """The sentence with which opening and reading all rows is refused."""
    with pytest.raises(DataError) as error:
        read_all(open_source(str(text), options))
    return str(error.value)


def test_the_identity_is_that_of_the_bytes(tmp_path: Path, options: ReadOptions) -> None:
    first, same, other = (
        open_source(str(write_idx(tmp_path / folder, IMAGES, labels)), options).identity()
        for folder, labels in (("a", LABELS), ("b", LABELS), ("c", LABELS[::-1].copy()))
    )
    assert first == same != other


def test_the_embedded_digits_are_those_of_scikit_learn(options: ReadOptions) -> None:
    from sklearn.datasets import load_digits

    raw = read_all(open_source("digits", options))
    np.testing.assert_array_equal(raw["image"], load_digits().images)
    np.testing.assert_array_equal(raw["label"], load_digits().target)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "t.csv": lambda table, path: table.to_csv(path, index=False),
    "t.csv.gz": lambda table, path: table.to_csv(path, index=False),
    "t.TSV": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    "t.parquet": lambda table, path: table.to_parquet(path, row_group_size=2),
    "t.arrow": lambda table, path: table.to_feather(path, compression="uncompressed"),
    "t.feather": lambda table, path: table.to_feather(path),
    "t.jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
    "t.ndjson.gz": lambda table, path: table.to_json(path, orient="records", lines=True, compression="gzip"),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_ending_of_a_name_tells_the_format(tmp_path: Path, options: ReadOptions, name: str) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    source = open_source(str(tmp_path / name), options)
    pd.testing.assert_frame_equal(pd.DataFrame(read_all(source)), TABLE, check_dtype=False)
    assert (source.label, source.columns()) == ("t", ("x", "text"))


def test_arrays_and_texts_are_read_too(tmp_path: Path, options: ReadOptions) -> None:
    np.savez(tmp_path / "t.npz", image=IMAGES, label=LABELS)
    np.testing.assert_array_equal(read_all(open_source(str(tmp_path / "t.npz"), options))["image"], IMAGES)
    np.save(tmp_path / "t.npy", IMAGES)
    assert open_source(str(tmp_path / "t.npy"), options).rows() == 50
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    assert [text.strip() for text in read_all(open_source(str(tmp_path / "t.txt"), options))["text"]] == ["one", "two"]


@pytest.mark.parametrize("text", ["{}", "{}/*.csv", "{}/part-[01].csv"])
def test_files_of_a_folder_or_a_glob_are_one_source_in_the_order_of_their_names(tmp_path: Path, options: ReadOptions, text: str) -> None:
    folder = tmp_path / "sales"
    folder.mkdir()
    for number in (1, 0):
        TABLE.iloc[3 * number : 3 * number + 3].to_csv(folder / f"part-{number}.csv", index=False)
    (folder / "README.md").write_text("not data")
    (folder / "_SUCCESS").write_text("")
    source = open_source(text.format(folder), options)
    pd.testing.assert_frame_equal(pd.DataFrame(read_all(source)), TABLE, check_dtype=False)
    assert source.label == "sales"
    assert source.place(4) == "part-1.csv, row 1"


def test_files_of_two_formats_are_no_source(tmp_path: Path, options: ReadOptions) -> None:
    TABLE.to_csv(tmp_path / "a.csv", index=False)
    TABLE.to_parquet(tmp_path / "b.parquet")
    assert refusal(tmp_path, options) == f"{tmp_path}: files of one format are expected, not .csv, .parquet"


def test_columns_are_given_the_names_of_the_task(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    source = open_source(str(tmp_path / "t.csv"), ReadOptions(tmp_path / "scratch", {"value": "x"}))
    assert source.columns() == ("value", "text")
    assert next(iter(source.read(1, 3, ["value"])))["value"].tolist() == [1, 2]


def test_splits_that_are_sources_of_their_own_follow_one_another(tmp_path: Path, options: ReadOptions) -> None:
    for name, rows in (("a", TABLE[:4]), ("b", TABLE[4:])):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    source = open_splits({"train": str(tmp_path / "a.csv"), "test": str(tmp_path / "b.csv")}, options)
    assert isinstance(source, SplitSources)
    assert (source.names, source.sizes) == (("train", "test"), [4, 2])
    pd.testing.assert_frame_equal(pd.DataFrame(read_all(source)), TABLE, check_dtype=False)


@pytest.mark.parametrize("name", ["none-images-idx3-ubyte.gz", "none.csv", "none/*.parquet"])
def test_a_missing_file_is_told_as_it_was_written(tmp_path: Path, options: ReadOptions, name: str) -> None:
    assert refusal(tmp_path / name, options) == f"{tmp_path / name}: there is no such file"


def test_an_empty_folder_is_no_source(tmp_path: Path, options: ReadOptions) -> None:
    assert refusal(tmp_path, options) == f"{tmp_path}: there is no such file"


def test_a_filesystem_that_nobody_knows_is_told(options: ReadOptions) -> None:
    assert refusal("nonsense://bucket/x.csv", options) == "nonsense://: no such filesystem: Protocol not known: nonsense"


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b", "x" * 300, "x" * 5000])
def test_a_source_that_can_be_no_path_is_told(options: ReadOptions, text: str) -> None:
    refusal(text, options)
