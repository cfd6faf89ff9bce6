"""Folders that the `datasets` library loads come out as the library itself gives them, class names and pictures among them."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.data.readers.hub import Hub
from pipelines.data.source import joined
from tests import damage
from workloads.base import DataError

ROWS = 2500
FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})


def made(rows: int = ROWS, step: int = 1) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"text": [f"row {row * step}" for row in range(rows)], "label": [row % 2 for row in range(rows)]}, FEATURES
    )


def read(source: Hub, start: int, stop: int, columns: list[str]) -> dict[str, list]:
    return {name: column.tolist() for name, column in joined(list(source.read(start, stop, columns))).items()}


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(content, "png")
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`: a saved Dataset; `many`: a saved DatasetDict; `tables`: files that the library has to convert; `pictures`."""
    root = tmp_path_factory.mktemp("hub")
    made().save_to_disk(str(root / "one"), num_shards=2)
    datasets.DatasetDict({"train": made(), "test": made(40, 3)}).save_to_disk(str(root / "many"))
    (root / "tables").mkdir()
    pd.DataFrame({"a": range(30), "b": [f"b{row}" for row in range(30)]}).to_parquet(root / "tables" / "train.parquet")
    pd.DataFrame({"a": range(10), "b": [f"b{row}" for row in range(10)]}).to_parquet(root / "tables" / "test.parquet")
    (root / "csv").mkdir()
    pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_csv(root / "csv" / "data.csv", index=False)
    for shade in range(6):
        path = root / "pictures" / ("cat" if shade % 2 else "dog") / f"{shade}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(shade))
    return root


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def test_a_saved_data_set_is_read_with_its_class_names(folder: Path, scratch: Path) -> None:
    source = Hub(f"hf://{folder}/one", None, scratch)
    assert source.columns() == ("text", "label")
    assert source.rows() == ROWS
    assert 0 in source.starts()
    assert ROWS // 2 in source.starts()
    expected = made()
    assert read(source, 1200, 1300, ["label", "text"]) == {
        "label": [expected.features["label"].int2str(number) for number in expected["label"][1200:1300]],
        "text": expected["text"][1200:1300],
    }
    assert source.place(3) == f"hf://{folder}/one train, row 3"
    assert source.label == "one"
    assert source.skipped().count == 0


def test_each_split_of_a_saved_dictionary_is_a_source(folder: Path, scratch: Path) -> None:
    text = f"hf://{folder}/many"
    assert Hub(text, None, scratch).splits() == ("train", "test")
    test = Hub(text, "test", scratch)
    assert (test.rows(), test.label) == (40, "many-test")
    assert read(test, 38, 40, ["text"]) == {"text": ["row 114", "row 117"]}
    with pytest.raises(DataError, match="many: has several splits; splits: train, test"):
        Hub(text, None, scratch).rows()
    with pytest.raises(DataError, match="many: has no split 'validation'; splits: train, test"):
        Hub(text, "validation", scratch).rows()


def test_a_folder_of_tables_is_converted_into_the_scratch_folder(folder: Path, scratch: Path) -> None:
    source = Hub(f"hf://{folder}/tables", "train", scratch)
    assert source.splits() == ("train", "test")
    assert read(source, 28, 30, ["a", "b"]) == {"a": [28, 29], "b": ["b28", "b29"]}
    assert list((scratch / "hub").rglob("*.arrow"))
    assert read(Hub(f"hf://{folder}/csv:default", None, scratch), 0, 2, ["a", "b"]) == {"a": [1, 2], "b": ["x", "y"]}


def test_pictures_are_bytes_wherever_they_lie(folder: Path, scratch: Path, tmp_path: Path) -> None:
    lying = Hub(f"hf://{folder}/pictures", None, scratch)
    found = read(lying, 0, 6, ["image", "label"])
    assert sorted(found["image"]) == sorted(png(shade) for shade in range(6))
    assert found["label"] == ["dog" if content in (png(0), png(2), png(4)) else "cat" for content in found["image"]]
    held = datasets.Dataset.from_dict({"image": [{"bytes": png(3), "path": None}]}, datasets.Features({"image": datasets.Image()}))
    held.save_to_disk(str(tmp_path / "held"))
    assert read(Hub(f"hf://{tmp_path}/held", None, scratch), 0, 1, ["image"]) == {"image": [png(3)]}


def test_a_path_that_leads_out_of_the_data_set_is_not_followed(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    pictures = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    values = {"image": [{"bytes": None, "path": str(tmp_path / "secret")}], "label": [0]}
    datasets.Dataset.from_dict(values, pictures).save_to_disk(str(tmp_path / "set"))
    (arrow,) = (tmp_path / "set").glob("*.arrow")  # saving put the file's bytes in
    table = pa.table(values, pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]))
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    (image,) = read(Hub(f"hf://{tmp_path}/set", None, scratch), 0, 1, ["image"])["image"]
    assert isinstance(image, DataError)
    assert "names no file of the data set" in str(image)


def test_labels_without_a_class_are_missing_or_errors_in_their_row(tmp_path: Path, scratch: Path) -> None:
    plain = datasets.Dataset.from_dict({"label": [0, -1, None, 1]}, datasets.Features({"label": datasets.Value("int64")}))
    plain.save_to_disk(str(tmp_path / "set"))
    info = tmp_path / "set" / "dataset_info.json"
    info.write_text(
        info.read_text().replace('"dtype": "int64",', '"names": ["only"],').replace('"_type": "Value"', '"_type": "ClassLabel"')
    )
    labels = read(Hub(f"hf://{tmp_path}/set", None, scratch), 0, 4, ["label"])["label"]
    assert labels[:3] == ["only", None, None]
    assert isinstance(labels[3], DataError)
    assert str(labels[3]) == "class number 1, but there are 1 classes"


def test_the_identity_tells_content_and_meaning(tmp_path: Path, scratch: Path) -> None:
    def identity_of(name: str, **changed: object) -> dict[str, str]:
        data = made(20).cast_column("label", datasets.ClassLabel(names=changed.get("names", ["bad", "good"])))
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        (data.select(range(changed.get("rows", 20)))).save_to_disk(str(tmp_path / "set"))
        return Hub(f"hf://{tmp_path}/set", None, scratch).identity()

    first = identity_of("set")
    assert identity_of("set") == first
    assert identity_of("set", names=["bad", "fine"]) != first
    assert identity_of("set", rows=19) != first


def test_another_picture_in_a_folder_is_another_identity(tmp_path: Path, folder: Path, scratch: Path) -> None:
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    source = f"hf://{tmp_path}/pictures"
    first = Hub(source, None, scratch).identity()
    assert Hub(source, None, scratch).identity() == first
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(png(99))
    assert Hub(source, None, scratch).identity() != first


def test_a_source_travels_and_refuses_a_folder_that_has_changed(tmp_path: Path, scratch: Path) -> None:
    made(20).save_to_disk(str(tmp_path / "set"))
    source = Hub(f"hf://{tmp_path}/set", None, scratch)
    assert source.rows() == 20
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert read(copy, 0, 1, ["text"]) == {"text": ["row 0"]}
    for path in (tmp_path / "set").glob("*.arrow"):
        os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="has changed since"):
        read(source, 0, 1, ["text"])


def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, scratch: Path) -> None:
    for number, harm in enumerate([damage.truncate, damage.empty, damage.zero_page]):
        made(20).save_to_disk(str(tmp_path / f"set{number}"))
        (arrow,) = (tmp_path / f"set{number}").glob("*.arrow")
        harm(arrow)
        with pytest.raises(DataError, match=rf"set{number}|data-00000"):
            read(Hub(f"hf://{tmp_path}/set{number}", None, scratch), 0, 20, ["text"])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "train.parquet").write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match="odd: cannot be loaded: "):
        Hub(f"hf://{tmp_path}/odd", None, scratch).rows()


def test_a_folder_with_code_runs_none_of_it(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'trapped')!r})")
    with pytest.raises(DataError, match="code: cannot be loaded: "):
        Hub(f"hf://{tmp_path}/code", None, scratch).rows()
    assert not (tmp_path / "trapped").exists()


def test_what_names_no_data_set_is_told(tmp_path: Path, folder: Path, scratch: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        Hub(f"hf://{tmp_path}/nowhere", None, scratch).rows()
    with pytest.raises(DataError, match="names no data set; expected hf://name or hf://name:config"):
        Hub("hf://", None, scratch).rows()
    with pytest.raises(DataError, match="one: was written by save_to_disk and so has no configurations, 'en' for one"):
        Hub(f"hf://{folder}/one:en", None, scratch).rows()


def test_a_name_on_the_hub_that_cannot_be_reached_is_told(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hf://nobody/nothing: cannot be loaded: "):
        Hub("hf://nobody/nothing", None, scratch).rows()
