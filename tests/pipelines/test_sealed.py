"""A folder or file counts as complete only where its manifest or card stands and agrees with it; proofs hold until a file changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import sealed
from pipelines.sealed import DamagedError, File
from tests import damage

DAMAGES = [damage.truncate, damage.flip_bit, damage.zero_page, damage.empty, damage.delete]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        (tmp_path / "folder" / name).write_bytes(name.encode() * 10_000)
    return tmp_path / "folder"


def described(folder: Path) -> dict[str, File]:
    return {name: sealed.describe(folder / name) for name in ("a", "b")}


@pytest.mark.parametrize("harm", DAMAGES)
def test_the_file_that_is_not_what_was_described_is_named(folder: Path, harm: Callable[[Path], None]) -> None:
    files = described(folder)
    assert sealed.mismatch(folder, files) is None
    harm(folder / "b")
    assert str(sealed.mismatch(folder, files)).startswith("b: ")


@pytest.mark.parametrize("name", ["../a", "/etc/hostname", "x/../a"])
def test_a_name_that_leads_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    assert sealed.mismatch(folder, {name: described(folder)["a"]}) == f"{name}: not a plain file name"


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_proof_holds_until_a_file_changes(folder: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    files, note = described(folder), tmp_path / "notes" / "proof"
    assert sealed.mismatch_since(note, folder, files) is None
    assert note.is_file()
    os.utime(folder / "b", ns=(1, 1))  # a disk's clock may stand still for some milliseconds
    harm(folder / "b")
    assert str(sealed.mismatch_since(note, folder, files)).startswith("b: ")


def test_a_proof_is_not_that_of_other_content(folder: Path, tmp_path: Path) -> None:
    files = described(folder)
    assert sealed.mismatch_since(tmp_path / "proof", folder, files) is None
    other = files | {"a": files["b"].model_copy(update={"bytes": files["a"].bytes})}
    assert str(sealed.mismatch_since(tmp_path / "proof", folder, other)).startswith("a: its content")


def test_the_manifest_is_the_last_thing_that_comes_to_stand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("rename", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (done.append(name), real(*arguments))[1])
    sealed.seal(folder, "MANIFEST", described(folder)["a"], ["a", "b"])
    assert done == ["fsync", "fsync", "fsync", "rename", "fsync"]  # both files and the manifest, then the folder
    assert File.model_validate_json((folder / "MANIFEST").read_text()) == described(folder)["a"]
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST", "a", "b"]


@settings(max_examples=30)
@given(content=JSON)
def test_a_card_comes_back(content: Any) -> None:
    assert sealed.card_content(sealed.card(content)) == content


@settings(max_examples=50)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_card_of_which_a_bit_has_changed_is_refused(place: int, bit: int) -> None:
    text = bytearray(sealed.card({"rows": 10_000, "of": ["a", "b"]}).encode())
    text[place % len(text)] ^= 1 << bit
    with pytest.raises(DamagedError):
        sealed.card_content(bytes(text))


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"[1, 2, 3]", b"\xff", b'{"rows": 1}'])
def test_what_is_no_card_is_refused(text: bytes) -> None:
    with pytest.raises(DamagedError):
        sealed.card_content(text)


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert sealed.digest({"a": 1, "b": [2]}) == sealed.digest({"b": [2], "a": 1}) != sealed.digest({"a": 1, "b": [3]})
