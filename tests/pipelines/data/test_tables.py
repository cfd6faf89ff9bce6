"""Tables and plain text are read as they were written, or refused by name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.data.sources import open_source
from workloads.base import DataError

TABLE = pd.DataFrame({"review": ["good, really", "two\nlines", "", "ünïcode"], "stars": [5, 1, 3, 4], "label": ["a", "b", "a", "b"]})


def written(folder: Path, name: str) -> str:
    path = folder / name
    if path.suffix == ".parquet":
        TABLE.to_parquet(path)
    else:
        TABLE.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (2, 2)])
def test_rows_are_read_as_they_were_written(tmp_path: Path, name: str, start: int, stop: int) -> None:
    source = open_source(written(tmp_path, name))
    raw = source.read(start, stop, ["review", "stars"])
    assert source.columns() == ("review", "stars", "label")
    assert source.rows() == 4
    assert list(raw) == ["review", "stars"]
    assert raw["review"].tolist() == TABLE["review"].tolist()[start:stop]
    assert raw["stars"].tolist() == TABLE["stars"].tolist()[start:stop]


def test_columns_may_be_called_otherwise(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, "t.csv"), {"text": "review"})
    assert source.columns() == ("text", "stars", "label")
    assert source.read(0, 1, ["text"])["text"].tolist() == ["good, really"]


def test_another_name_is_another_identity(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv")
    assert (
        open_source(path, {"text": "review"}).identity() != open_source(path, {"text": "label"}).identity() != open_source(path).identity()
    )


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, "t.csv"), {"text": "reviews"})
    with pytest.raises(DataError, match="there is no column 'reviews'; columns: review, stars, label"):
        source.columns()


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv")
    assert open_source(path).rows() == 4
    TABLE.head(2).to_csv(path, index=False)
    assert open_source(path).rows() == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", b"a,b\n1,2\n3\n", "t.csv: cannot be read as a table"),
        ("t.csv", b"", "t.csv: cannot be read as a table"),
        ("t.csv", b"a,a\n1,2\n", "t.csv: has the column 'a' more than once"),
        ("t.parquet", b"PAR1 and nothing more", "t.parquet: cannot be read as a table"),
        ("t.txt", b"good\n\xff\xfe\n", "t.txt: not UTF-8 at byte 5"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        open_source(str(tmp_path / name)).rows()


def test_a_text_is_its_lines_with_their_ends(tmp_path: Path) -> None:
    content = "first\n\n third\r\nlast without an end"
    (tmp_path / "t.txt").write_bytes(content.encode())
    source = open_source(str(tmp_path / "t.txt"))
    lines = source.read(0, source.rows(), ["text"])["text"]
    assert "".join(lines) == content
    assert len(lines) == 4


def test_booleans_and_decimals_with_gaps_come_as_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame({"flag": [True, None, False], "price": [Decimal("1.5"), None, Decimal("2.25")]})
    table.to_parquet(tmp_path / "t.parquet")
    raw = open_source(str(tmp_path / "t.parquet")).read(0, 3, ["flag", "price"])
    np.testing.assert_array_equal(raw["flag"], [1, np.nan, 0])
    np.testing.assert_array_equal(raw["price"], [1.5, np.nan, 2.25])


def test_numbers_with_gaps_come_as_floats_with_nan(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,x\n,y\n")
    raw = open_source(str(tmp_path / "t.csv")).read(0, 2, ["a"])
    np.testing.assert_array_equal(raw["a"], [1.0, np.nan])
