"""Prepared datasets in a folder, in memory behind fsspec, or in an S3 bucket: one set of promises, and copies that are proven."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipelines.data import dataset as prepared
from pipelines.data.dataset import MANIFEST, SAMPLE
from pipelines.data.store import Store
from tests import damage
from tests.made import COLUMNS, folders_in, store_in, written
from tests.s3 import s3
from workloads.base import DataError

__all__ = ["s3"]
BUCKET = "raylway"


@pytest.fixture(scope="module")
def bucket(s3: Any) -> Any:
    s3.create_bucket(Bucket=BUCKET)
    return s3


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    place = f"{uuid.uuid4().hex}/a folder"
    if request.param == "s3":
        request.getfixturevalue("bucket")
    yield store_in(
        tmp_path, {"folder": str(tmp_path / place), "memory": f"memory://{place}", "s3": f"s3://{BUCKET}/{place}"}[request.param]
    )
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Store]:
    yield store_in(tmp_path, f"memory://{uuid.uuid4().hex}")
    fsspec.filesystem("memory").store.clear()


def put(store: Store, folder: str, name: str, content: bytes) -> None:
    with store.workspace() as here:
        (here / "x").write_bytes(content)
        store.put(here / "x", folder, name)
        assert not (here / "x").exists()


def got(store: Store, folder: str, name: str) -> bytes:
    with store.workspace() as here:
        return store.get(folder, name, here / "into").read_bytes()


def remotely(store: Store, name: str) -> str:
    return f"{store.place.removeprefix('memory:/')}/{name}"


def change(store: Store, name: str, harm: Callable[[Path], None], tmp_path: Path) -> None:
    """Do harm to a file in the memory filesystem."""
    memory = fsspec.filesystem("memory")
    (tmp_path / "harmed").write_bytes(memory.cat_file(remotely(store, name)))
    harm(tmp_path / "harmed")
    if (tmp_path / "harmed").exists():
        memory.pipe_file(remotely(store, name), (tmp_path / "harmed").read_bytes())
    else:
        memory.rm_file(remotely(store, name))


# ---- files


def test_what_was_put_is_there_under_its_name_alone(store: Store) -> None:
    assert not store.has("one", "x")
    assert folders_in(store) == []
    put(store, "one", "x", b"content\0")
    put(store, "two", "x", b"")
    assert (store.has("one", "x"), store.has("two", "x"), store.has("one", "y"), store.has("three", "x")) == (True, True, False, False)
    assert got(store, "one", "x") == b"content\0"
    assert got(store, "two", "x") == b""
    assert folders_in(store) == ["one", "two"]


def test_putting_again_replaces(store: Store) -> None:
    for content in (b"first and long", b"second"):
        put(store, "one", "x", content)
        assert got(store, "one", "x") == content


def test_what_is_removed_is_gone_and_nothing_else_is(store: Store) -> None:
    for folder in ("one", "one more"):
        put(store, folder, "x", b"x")
    for _ in range(2):
        store.remove("one")
        assert folders_in(store) == ["one more"]
    assert got(store, "one more", "x") == b"x"


def test_a_workspace_is_gone_at_the_end_whatever_happens(store: Store, tmp_path: Path) -> None:
    def interrupted() -> None:
        with store.workspace() as here:
            (here / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.rglob("*work*"))


def test_what_is_written_whole_is_in_place(store: Store) -> None:
    with store.writing("one", last="done") as folder:
        put(store, folder, "x", b"x")
        assert not store.has("one", "done")
        put(store, folder, "done", b"")
    assert (store.has("one", "x"), store.has("one", "done"), folders_in(store)) == (True, True, ["one"])


def test_what_fails_on_the_way_is_not_taken_for_whole(store: Store) -> None:
    def interrupted() -> None:
        with store.writing("one", last="done") as folder:
            put(store, folder, "x", b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not store.has("one", "done")
    assert store.remote or folders_in(store) == []


def test_a_folder_without_its_last_file_gives_way(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    put(store, "one", "old", b"x")
    with store.writing("one", last="done") as folder:
        put(store, folder, "done", b"")
    assert os.listdir(tmp_path / "kept" / "one") == ["done"]


def test_who_comes_second_leaves_what_is_there(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with store.writing("one", last="done") as late:
        put(store, late, "done", b"late")
        with store.writing("one", last="done") as early:
            put(store, early, "done", b"early")
    assert got(store, "one", "done") == b"early"
    assert folders_in(store) == ["one"]


def test_only_one_works_at_a_name_at_a_time(tmp_path: Path) -> None:
    store, inside, most = store_in(tmp_path), [], []

    def work(number: int) -> None:
        with store.alone("one"):
            inside.append(number)
            most.append(len(inside))
            threading.Event().wait(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == [1] * 8


# ---- what cannot be had


@pytest.mark.parametrize("kind", ["memory://nowhere", "s3://no-such-bucket-here/x"])
def test_a_file_that_is_not_there_is_told(bucket: Any, tmp_path: Path, kind: str) -> None:
    store = store_in(tmp_path, kind)
    assert not store.has("one", "x")
    with pytest.raises(DataError, match=f"^{kind}: "):
        store.get("one", "x", tmp_path / "into")


def test_secrets_of_an_address_are_not_told(bucket: Any, tmp_path: Path) -> None:
    store = store_in(tmp_path, f"s3://someone:password@{BUCKET}-else/x?region=eu-north-1")
    with pytest.raises(DataError) as error:
        put(store, "one", "x", b"x")
    assert "password" not in str(error.value)
    assert "region" not in str(error.value)


# ---- datasets


def test_a_dataset_is_whole_on_another_node(store: Store, tmp_path: Path) -> None:
    written(store, shard_bytes=20_000)
    there = Store(store.place, tmp_path / "another node")
    dataset = prepared.proven(there, "data")
    for name, column in dataset.test.take(np.arange(37)).items():
        np.testing.assert_array_equal(column, COLUMNS[name])
    assert dataset.folder.is_relative_to(there.cache if store.remote else store.place)


def test_a_dataset_is_fetched_once_by_all_who_ask(remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written(remote)
    fetched: list[str] = []
    honest = Store.get

    def counting(store: Store, folder: str, name: str, into: Path) -> Path:
        fetched.append(name)
        return honest(store, folder, name, into)

    monkeypatch.setattr(Store, "get", counting)
    start = threading.Barrier(4)

    def ask(_: int) -> Path:
        start.wait()
        return prepared.proven(remote, "data").folder

    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(ask, range(4)))
    assert len(folders) == 1
    assert sorted(fetched) == sorted([MANIFEST, SAMPLE, "train-00000.arrow", "validation-00000.arrow", "test-00000.arrow"])
    assert not list(remote.cache.glob(".work*"))


@pytest.mark.parametrize("name", [SAMPLE, "train-00000.arrow"])
@pytest.mark.parametrize("harm", [damage.truncate, damage.flip_bit, damage.zero_page, damage.empty, damage.delete])
def test_a_damaged_remote_file_is_refused_where_it_lies(remote: Store, tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    written(remote)
    change(remote, f"data/{name}", harm, tmp_path)
    for _ in range(2):
        with pytest.raises(DataError, match=f"^{remote.place}"):
            prepared.proven(remote, "data")
    assert not (remote.cache / "datasets").exists()


def test_a_damaged_remote_manifest_is_refused(remote: Store, tmp_path: Path) -> None:
    written(remote)
    change(remote, f"data/{MANIFEST}", damage.flip_bit, tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json"):
        prepared.proven(remote, "data")


def test_a_damaged_copy_is_refused_and_fetched_anew_once_it_is_deleted(remote: Store) -> None:
    written(remote)
    folder = prepared.proven(remote, "data").folder
    damage.flip_bit(folder / "train-00000.arrow")
    with pytest.raises(DataError, match=f"{folder}/train-00000.arrow: .*delete the folder"):
        prepared.proven(remote, "data")
    (folder / MANIFEST).unlink()  # as who deletes it, and is interrupted
    assert len(prepared.proven(remote, "data").train) == 37


def test_a_half_written_remote_dataset_is_not_used(remote: Store) -> None:
    written(remote)
    fsspec.filesystem("memory").rm_file(remotely(remote, f"data/{MANIFEST}"))
    assert not remote.has("data", MANIFEST)
    with pytest.raises(DataError, match=MANIFEST):
        prepared.proven(remote, "data")


def test_several_that_write_the_same_dataset_into_a_bucket_end_with_the_same(bucket: Any, tmp_path: Path) -> None:
    store = store_in(tmp_path, f"s3://{BUCKET}/{tmp_path.name}")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: written(store), range(3)))
    assert folders_in(store) == ["data"]
    assert len(prepared.proven(store, "data").train) == 37


def test_using_a_dataset_is_remembered(store: Store) -> None:
    written(store)
    manifest = prepared.proven(store, "data").folder / MANIFEST
    os.utime(manifest, (1, 1))
    prepared.proven(store, "data")
    assert manifest.stat().st_mtime > 1e9
