"""The same rows by every road into the same prepared rows: formats, places, names of columns, and where the prepared data are kept."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image

from pipelines import config
from pipelines.data import preparation
from pipelines.data.dataset import Dataset
from pipelines.data.splits import SPLITS, split_of
from pipelines.run_settings import Run
from pipelines.screen import Screen
from pipelines.verbs.train import train
from tests import damage, runs
from tests.idx import write_idx
from tests.s3 import s3
from workloads.base import DataError
from workloads.tasks import tokens

__all__ = ["s3"]
CANARY = "-".join(["canary", "of", "a", "secret"])  # in parts, or a run that keeps the diff of this file would hold it
ROWS = 180  # of which no class has fewer than 50: those would be drawn by themselves
TABLE = pd.DataFrame(
    {
        "x": np.arange(ROWS) * 1.5,
        "y": np.arange(ROWS) % 11,
        "text": [f"{'good' if row % 3 else 'bad'} {' '.join(str(row))}" for row in range(ROWS)],
        "label": ["abc"[row * 3 // ROWS] for row in range(ROWS)],
    }
)
BELONGS = split_of(0, ROWS, shares=(0.6, 0.2, 0.2), seed=0)
SHARES = "data.splits={train: 0.6, validation: 0.2, test: 0.2}"


def load(folder: Path, recipe: str, source: str | Path | None, *overrides: str) -> Run:
    small = ("train.batch=8", "train.epochs=1", "scale.workers=0", "scale.threads=1")
    return runs.load(folder / "storage", f"data.source={source or 'null'}", SHARES, *small, *overrides, recipe=recipe)


def make(run: Run) -> Dataset:
    return preparation.prepare(run, preparation.plan(run), preparation.in_process)


def stored(dataset: Dataset, split: str) -> dict[str, np.ndarray]:
    rows = getattr(dataset, split)
    return rows.take(np.arange(len(rows)))


# ---- tables


def to_npz(table: pd.DataFrame, path: Path) -> None:
    np.savez(path, **{name: table[name].to_numpy(None if pd.api.types.is_numeric_dtype(table[name]) else str) for name in table})


def to_stream(table: pd.DataFrame, path: Path) -> None:
    content = pa.Table.from_pandas(table, preserve_index=False)
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=50)


def lines(table: pd.DataFrame, path: Path) -> None:
    table.to_json(path, orient="records", lines=True)


FORMATS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "csv.gz": lambda table, path: table.to_csv(path, index=False),
    "tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    "tsv.gz": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    "jsonl": lines,
    "jsonl.gz": lines,
    "ndjson": lines,
    "parquet": lambda table, path: table.to_parquet(path, row_group_size=50),
    "arrow": to_stream,
    "feather": lambda table, path: table.to_feather(path),
    "npz": to_npz,
}


def check_table(dataset: Dataset, belongs: np.ndarray = BELONGS) -> None:
    """Rows by split, worked out from the table itself."""
    assert dataset.manifest.encoding["classes"] == ["a", "b", "c"]
    for number, split in enumerate(SPLITS):
        rows, found = TABLE[belongs == number], stored(dataset, split)
        np.testing.assert_array_equal(found["features"], rows[["x", "y"]].to_numpy(np.float64).astype(found["features"].dtype))
        assert [dataset.manifest.encoding["classes"][index] for index in found["label"]] == rows["label"].tolist()


def of_table(folder: Path, source: str | Path | None, *overrides: str) -> Run:
    return load(folder, "mlp_binary", source, "model.features=[x, y]", *overrides)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_gives_the_same_rows_in_every_format(tmp_path: Path, kind: str) -> None:
    FORMATS[kind](TABLE, tmp_path / f"t.{kind}")
    check_table(make(of_table(tmp_path, tmp_path / f"t.{kind}")))


@pytest.mark.parametrize("kind", FORMATS)
def test_several_files_give_the_rows_of_one(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, ROWS, 70)):
        FORMATS[kind](TABLE[start : start + 70].reset_index(drop=True), folder / f"part-{number}.{kind}")
    for source in (folder, folder / f"*.{kind}", folder / f"part-[0-9].{kind}"):
        check_table(make(of_table(tmp_path, source)))


# ---- places


@pytest.fixture(params=["memory", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], str]:
    """`put(path)`: a copy of a file or folder in an object store, and its URI there."""
    client = request.getfixturevalue("s3") if request.param == "s3" else None
    if client:
        client.create_bucket(Bucket="sources")

    def copied(path: Path) -> str:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            key = f"{tmp_path.name}/{path.name}/{file.relative_to(path)}".removesuffix("/.")
            if file.is_file() and client:
                client.put_object(Bucket="sources", Key=key, Body=file.read_bytes())
            elif file.is_file():
                fsspec.filesystem("memory").pipe(f"/sources/{key}", file.read_bytes())
        return f"{request.param}://sources/{tmp_path.name}/{path.name}"

    return copied


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet", "arrow", "npz"])
def test_a_table_in_an_object_store_gives_the_same_rows(tmp_path: Path, put: Callable[[Path], str], kind: str) -> None:
    FORMATS[kind](TABLE, tmp_path / f"t.{kind}")
    check_table(make(of_table(tmp_path, put(tmp_path / f"t.{kind}"))))


def test_a_folder_and_a_glob_in_an_object_store_give_the_same_rows(tmp_path: Path, put: Callable[[Path], str]) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, ROWS, 70)):
        TABLE[start : start + 70].to_csv(folder / f"part-{number}.csv", index=False)
    uri = put(folder)
    for source in (uri, f"{uri}/*.csv"):
        check_table(make(of_table(tmp_path, source)))


# ---- data sets of the Hugging Face library


def saved(folder: Path, columns: dict[str, Any], **features: Any) -> Path:
    """What `save_to_disk` makes of columns, some of them of these features."""
    table = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    table.save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("text", ["{}", "hf://{}"])
def test_a_saved_data_set_gives_the_same_rows(tmp_path: Path, text: str) -> None:
    columns = TABLE.to_dict("list") | {"label": ["abc".index(label) for label in TABLE["label"]]}
    folder = saved(tmp_path / "saved", columns, label=datasets.ClassLabel(names=["a", "b", "c"]))
    check_table(make(of_table(tmp_path, text.format(folder))))


def test_a_folder_that_the_library_loads_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "loaded").mkdir()
    TABLE.to_csv(tmp_path / "loaded" / "data.csv", index=False)
    check_table(make(of_table(tmp_path, f"hf://{tmp_path / 'loaded'}")))


def test_the_splits_of_a_saved_data_set_are_kept(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_pandas(rows, preserve_index=False) for name, rows in thirds().items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    check_table(make(of_table(tmp_path, f"hf://{tmp_path / 'saved'}")), np.arange(ROWS) % 3)


# ---- splits that are given


def thirds() -> dict[str, pd.DataFrame]:
    return {name: TABLE[np.arange(ROWS) % 3 == number] for number, name in enumerate(SPLITS)}


@pytest.mark.parametrize("kinds", [("csv", "csv", "csv"), ("parquet", "jsonl.gz", "tsv"), ("npz", "feather", "arrow")])
def test_splits_may_be_given_in_different_formats(tmp_path: Path, kinds: tuple[str, str, str]) -> None:
    files = {}
    for (name, rows), kind in zip(thirds().items(), kinds, strict=True):
        files[name] = tmp_path / f"{name}.{kind}"
        FORMATS[kind](rows.reset_index(drop=True), files[name])
    given = [f"data.{name}={path}" for name, path in files.items()]
    check_table(make(of_table(tmp_path, None, *given)), np.arange(ROWS) % 3)


def test_a_column_tells_the_same_splits_as_files_do(tmp_path: Path) -> None:
    TABLE.assign(part=[SPLITS[row % 3] for row in range(ROWS)]).to_parquet(tmp_path / "t.parquet")
    check_table(make(of_table(tmp_path, tmp_path / "t.parquet", "data.splits.column=part")), np.arange(ROWS) % 3)


# ---- names of columns


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_of_other_names_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    others = {"x": "width", "y": "height", "label": "species"}
    FORMATS[kind](TABLE.rename(columns=others), tmp_path / f"t.{kind}")
    names = [f"data.columns.{ours}={theirs}" for ours, theirs in others.items()]
    check_table(make(of_table(tmp_path, tmp_path / f"t.{kind}", *names)))


@pytest.mark.parametrize("kind", FORMATS)
def test_missing_columns_are_told_with_all_there_are_and_the_nearest(tmp_path: Path, kind: str) -> None:
    FORMATS[kind](TABLE.rename(columns={"text": "texts", "label": "labels"}), tmp_path / f"t.{kind}")
    with pytest.raises(DataError) as error:
        make(load(tmp_path, "lstm_text", tmp_path / f"t.{kind}"))
    for sentence in (
        f"t.{kind}: there is no column 'text'; did you mean data.columns.text=texts?",
        "there is no column 'label'; did you mean data.columns.label=labels?",
        "columns: x, y, texts, labels",
    ):
        assert sentence in str(error.value)


# ---- pictures: of rows that lie by class, as those of a folder do

COLOURS = {1: "grey", 3: "colour"}
IMAGES = {channels: np.random.default_rng(channels).integers(0, 256, (ROWS, 9, 8, channels), dtype=np.uint8) for channels in COLOURS}
LABELS = (np.arange(ROWS) * 3 // ROWS).astype(np.uint8)


def plain(channels: int) -> np.ndarray:
    """(N, H, W) of grey pictures, else (N, H, W, C)."""
    return IMAGES[channels].squeeze(3) if channels == 1 else IMAGES[channels]


def pngs(channels: int) -> list[bytes]:
    found = []
    for image in plain(channels):
        written = io.BytesIO()
        Image.fromarray(image).save(written, "PNG")
        found.append(written.getvalue())
    return found


def png_folder(folder: Path, channels: int, step: int = 1) -> Path:
    for row, content in list(enumerate(pngs(channels)))[::step]:
        file = folder / str(LABELS[row]) / f"{row:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def png_table(folder: Path, channels: int, kind: str, step: int = 1) -> Path:
    """A table that names the pictures beside it."""
    png_folder(folder, channels, step)
    table = pd.DataFrame({"image": [f"{label}/{row:03}.png" for row, label in enumerate(LABELS)], "label": LABELS})[::step].reset_index(
        drop=True
    )
    FORMATS[kind](table, folder / f"t.{kind}")
    return folder / f"t.{kind}"


def image_table(path: Path, images: Any) -> Path:
    pyarrow.parquet.write_table(pa.table({"image": images, "label": LABELS}), path, row_group_size=50)
    return path


def image_npz(path: Path, channels: int) -> Path:
    np.savez_compressed(path, image=plain(channels), label=LABELS)
    return path


def image_arrow(path: Path, channels: int) -> Path:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(plain(channels)))
    pyarrow.feather.write_feather(pa.table({"image": tensors, "label": LABELS}), path)
    return path


def image_lines(path: Path, channels: int) -> Path:
    lines(pd.DataFrame({"image": plain(channels).tolist(), "label": LABELS}), path)
    return path


def image_saved(folder: Path, channels: int) -> Path:
    columns = {"image": [{"bytes": content, "path": None} for content in pngs(channels)], "label": LABELS.tolist()}
    return saved(folder, columns, image=datasets.Image(), label=datasets.ClassLabel(names=["0", "1", "2"]))


PICTURES: dict[str, Callable[[Path, int], Path]] = {
    "a folder": lambda folder, channels: png_folder(folder / "pictures", channels),
    "bytes in parquet": lambda folder, channels: image_table(folder / "t.parquet", pngs(channels)),
    "arrays in parquet": lambda folder, channels: image_table(folder / "t.parquet", plain(channels).tolist()),
    "arrays in arrow": lambda folder, channels: image_arrow(folder / "t.arrow", channels),
    "arrays in lines": lambda folder, channels: image_lines(folder / "t.jsonl", channels),
    "paths in csv": lambda folder, channels: png_table(folder / "pictures", channels, "csv"),
    "paths in parquet": lambda folder, channels: png_table(folder / "pictures", channels, "parquet"),
    "npz": lambda folder, channels: image_npz(folder / "t.npz", channels),
    "a saved data set": lambda folder, channels: image_saved(folder / "saved", channels),
}
GREY: dict[str, Callable[[Path, int], Path]] = {
    "idx": lambda folder, channels: write_idx(folder / "idx", plain(channels), LABELS, gz=False),
    "idx.gz": lambda folder, channels: write_idx(folder / "idx", plain(channels), LABELS),
}
ROADS = [(name, write, channels) for channels in COLOURS for name, write in (PICTURES | (GREY if channels == 1 else {})).items()]


def check_pictures(dataset: Dataset, channels: int, step: int = 1) -> None:
    images, labels = IMAGES[channels][::step].transpose(0, 3, 1, 2), LABELS[::step]
    assert dataset.manifest.encoding["classes"] == ["0", "1", "2"]
    for number, split in enumerate(SPLITS):
        found, rows = stored(dataset, split), BELONGS[: len(images)] == number
        np.testing.assert_array_equal(found["image"], images[rows])
        np.testing.assert_array_equal(found["label"], labels[rows])


@pytest.mark.parametrize(("write", "channels"), [road[1:] for road in ROADS], ids=[f"{road[0]}, {COLOURS[road[2]]}" for road in ROADS])
def test_pictures_give_the_same_rows_by_every_road(tmp_path: Path, write: Callable[[Path, int], Path], channels: int) -> None:
    check_pictures(make(load(tmp_path, "cnn", write(tmp_path, channels))), channels)


@pytest.mark.parametrize("road", ["bytes in parquet", "npz", "idx.gz"])
def test_pictures_in_an_object_store_give_the_same_rows(tmp_path: Path, put: Callable[[Path], str], road: str) -> None:
    path = (PICTURES | GREY)[road](tmp_path, 1)
    uri = f"{put(path.parent)}/{path.name}" if road == "idx.gz" else put(path)  # whose labels lie beside it
    check_pictures(make(load(tmp_path, "cnn", uri)), 1)


@pytest.mark.parametrize("name", ["", "/*.csv"])
def test_a_folder_of_pictures_in_an_object_store_and_a_table_of_their_paths_give_the_same_rows(
    tmp_path: Path, put: Callable[[Path], str], name: str
) -> None:
    step, folder = 9, tmp_path / "pictures"
    png_table(folder, 1, "csv", step) if name else png_folder(folder, 1, step)
    check_pictures(make(load(tmp_path, "cnn", f"{put(folder)}{name}", "data.splits.stratify=false")), 1, step)


def test_a_glob_of_tables_finds_the_pictures_that_they_name(tmp_path: Path) -> None:
    png_table(tmp_path / "pictures", 1, "csv")
    check_pictures(make(load(tmp_path, "cnn", tmp_path / "pictures" / "*.csv")), 1)


# ---- texts and series

TEXT = "".join(f"line {row} of the text, é and all\n" for row in range(ROWS))


def text_lines(path: Path) -> Path:
    lines(pd.DataFrame({"text": TEXT.splitlines(keepends=True)}), path)
    return path


def text_parquet(path: Path) -> Path:
    pd.DataFrame({"text": TEXT.splitlines(keepends=True)}).to_parquet(path, row_group_size=50)
    return path


def text_gz(path: Path) -> Path:
    path.write_bytes(gzip.compress(TEXT.encode()))
    return path


def text_plain(path: Path) -> Path:
    path.write_text(TEXT)
    return path


TEXTS: dict[str, Callable[[Path], Path]] = {
    "t.txt": text_plain,
    "t.md": text_plain,
    "t.txt.gz": text_gz,
    "t.jsonl": text_lines,
    "t.parquet": text_parquet,
    "saved": lambda folder: saved(folder, {"text": TEXT.splitlines(keepends=True)}),
}


def check_text(dataset: Dataset) -> None:
    whole = TEXT.splitlines(keepends=True)
    for split, part in zip(SPLITS, (whole[:108], whole[108:144], whole[144:]), strict=True):
        found = tokens.text(dataset.manifest.encoding["tokenizer"], stored(dataset, split)["token"].tolist())
        assert found == "".join(part)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_the_same_by_every_road(tmp_path: Path, name: str) -> None:
    check_text(make(load(tmp_path, "gpt", TEXTS[name](tmp_path / name), "model.tokens=bpe", "model.vocabulary=300")))


def test_a_text_in_an_object_store_is_the_same(tmp_path: Path, put: Callable[[Path], str]) -> None:
    check_text(make(load(tmp_path, "gpt", put(text_gz(tmp_path / "t.txt.gz")), "model.tokens=bpe", "model.vocabulary=300")))


@pytest.mark.parametrize("kind", FORMATS)
def test_labelled_texts_are_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    FORMATS[kind](TABLE.rename(columns={"text": "review"}), tmp_path / f"t.{kind}")
    dataset = make(load(tmp_path, "lstm_text", tmp_path / f"t.{kind}", "data.columns.text=review", "model.frequency=1"))
    for number, split in enumerate(SPLITS):
        found, rows = stored(dataset, split), TABLE[number == BELONGS]
        texts = [
            tokens.text(dataset.manifest.encoding["tokenizer"], row[1:length])
            for row, length in zip(found["tokens"], found["length"], strict=True)
        ]
        assert texts == rows["text"].tolist()
        assert found["label"].tolist() == ["abc".index(label) for label in rows["label"]]


def to_npy(table: pd.DataFrame, path: Path) -> None:
    np.save(path, table["x"].to_numpy())


@pytest.mark.parametrize(("kind", "write"), [*FORMATS.items(), ("npy", to_npy)])
def test_a_series_is_the_same_in_every_format(tmp_path: Path, kind: str, write: Callable[[pd.DataFrame, Path], object]) -> None:
    write(TABLE[["x", "y"]], tmp_path / f"x.{kind}")
    model = ["model.window=10", "model.horizon=2", "model.season=5", "model.time=null", "model.targets=[x]", "model.series=[x]"]
    dataset = make(load(tmp_path, "lstm", tmp_path / f"x.{kind}", *model))
    mean, deviation = TABLE["x"][:108].mean(), TABLE["x"][:108].std(ddof=0)
    for split, start, stop in zip(SPLITS, (0, 98, 134), (108, 144, ROWS), strict=True):
        found = stored(dataset, split)["values"].reshape(-1)
        np.testing.assert_allclose(found, (TABLE["x"][start:stop] - mean) / deviation, rtol=1e-5, atol=1e-6)


# ---- prepared data that are kept elsewhere


def test_prepared_data_in_an_object_store_are_fetched_once_and_train_the_same(s3: Any, tmp_path: Path) -> None:
    TABLE.to_parquet(tmp_path / "t.parquet")
    s3.create_bucket(Bucket="prepared")
    settled = [
        f"data.source={tmp_path / 't.parquet'}",
        SHARES,
        "model.features=[x, y]",
        "train.batch=8",
        "train.steps=6",
        "scale.workers=0",
    ]
    away = ["data.prepared=s3://prepared/by/us", f"data.cache={tmp_path / 'cache'}"]
    job = partial(runs.job, recipe="mlp_binary")
    here = runs.alone(job(tmp_path / "here", tmp_path / "here" / "run", *settled))
    there_job = job(tmp_path / "there", tmp_path / "there" / "run", *settled, *away)
    assert runs.alone(there_job).weights_sha256 == here.weights_sha256

    fingerprint = there_job.fingerprint
    keys = [found["Key"] for found in s3.list_objects_v2(Bucket="prepared")["Contents"] if not found["Key"].endswith("/")]
    assert {key.split("/")[2] for key in keys} == {fingerprint}
    cached = tmp_path / "cache" / "datasets" / fingerprint
    assert sorted(path.name for path in cached.iterdir()) == sorted(Path(key).name for key in keys)
    assert not (tmp_path / "there" / "storage" / "datasets" / fingerprint).exists()

    first = {path: path.stat().st_ino for path in cached.iterdir()}
    again = runs.alone(job(tmp_path / "there", tmp_path / "there" / "again", *settled, *away))
    assert again.weights_sha256 == here.weights_sha256
    assert {path: path.stat().st_ino for path in cached.iterdir()} == first, "fetched anew"

    shutil.rmtree(cached)
    node = runs.alone(job(tmp_path / "another", tmp_path / "another" / "run", *settled, *away))
    assert node.weights_sha256 == here.weights_sha256
    assert sorted(path.name for path in cached.iterdir()) == sorted(path.name for path in first)


def test_a_copy_of_prepared_data_that_was_damaged_is_not_used(s3: Any, tmp_path: Path) -> None:
    TABLE.to_parquet(tmp_path / "t.parquet")
    s3.create_bucket(Bucket="proven")
    run = of_table(tmp_path, tmp_path / "t.parquet", "data.prepared=s3://proven/x", f"data.cache={tmp_path / 'cache'}")
    folder = make(run).folder
    damage.flip_bit(folder / "train-00000.arrow")
    with pytest.raises(DataError, match=r"train-00000\.arrow"):
        make(run)
    shutil.rmtree(folder)
    check_table(make(run))


def test_a_secret_in_a_uri_is_written_nowhere(s3: Any, tmp_path: Path, empty_database: Path) -> None:
    TABLE.to_parquet(tmp_path / "t.parquet")
    s3.create_bucket(Bucket="guarded")
    s3.upload_file(str(tmp_path / "t.parquet"), "guarded", "t.parquet")
    storage = tmp_path / "storage"
    storage.mkdir()
    shutil.copy(empty_database, storage / "mlflow.db")
    settings = ["model.features=[x, y]", "train.batch=8", "train.steps=2", "scale.workers=0", "scale.threads=1", f"storage={storage}"]
    result = train(config.load("mlp_binary", [f"data.source=s3://testing:{CANARY}@guarded/t.parquet", *settings]), screen=Screen())
    assert result["status"] == "finished"
    files = [path for path in storage.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
