"""Folders and files that are complete or absent: a manifest or card of sizes and hashes is written last, by rename, and compared first.

A manifest is a file of a folder and lists the others by size and sha256. A card lies beside one file or part, carries a hash of itself and
says what the part holds. What cannot be made anew (a checkpoint) is synced, file by file and then the folder, before it counts; what can
be (a dataset, a parsed file) is not: its content is compared with its hash before it is believed, once for each node and change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class File(BaseModel):
    """Size and content of a file that a manifest lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class DamagedError(ValueError):
    """A card that is missing, or is not what was written."""


def describe(path: Path) -> File:
    return File(bytes=path.stat().st_size, sha256=sha256(path))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """sha256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that the file at `path` is; other processes wait. The kernel frees the lock of a killed process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def stamp(path: Path) -> tuple[int, int, int]:
    """Size, time of change and inode: other numbers once the file was written to or replaced. Raises OSError."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def mismatch(folder: Path, files: Mapping[str, File], *, content: bool = True) -> str | None:
    """The fault of the first file of `folder` that is not as `files` says, or None. `content` compares hashes too."""
    for name, file in files.items():
        path = folder / name
        if Path(name).name != name:
            return f"{name}: not a plain file name"
        if not path.is_file():
            return f"{name}: missing"
        if path.stat().st_size != file.bytes:
            return f"{name}: {path.stat().st_size:,} bytes, but the manifest says {file.bytes:,}"
        if content and sha256(path) != file.sha256:
            return f"{name}: its content is not what was written (sha256 differs)"
    return None


def mismatch_since(note: Path, folder: Path, files: Mapping[str, File]) -> str | None:
    """As `mismatch`, but hashes are compared only if the file `note` does not say that these very files were proven already."""
    if wrong := mismatch(folder, files, content=False):
        return wrong
    proof = json.dumps([digest({name: file.sha256 for name, file in files.items()}), {name: stamp(folder / name) for name in files}])
    if note.is_file() and note.read_bytes() == proof.encode():
        return None
    if wrong := mismatch(folder, files):
        return wrong
    with contextlib.suppress(OSError):  # where no note can be kept, every opening proves anew
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, proof)
    return None


def text_of(manifest: BaseModel) -> str:
    return json.dumps(manifest.model_dump(mode="json"), indent=1)


def seal(folder: Path, name: str, manifest: BaseModel, files: Iterable[str] = ()) -> None:
    """Write the manifest `name` of `folder` last: `files` and the manifest are synced, it is renamed into place, the folder is synced."""
    unsealed = folder / f".{name}"
    unsealed.write_text(text_of(manifest))
    for file in (*files, unsealed.name):
        sync(folder / file)
    os.rename(unsealed, folder / name)
    sync(folder)


def card(content: Any) -> str:
    """The text of a card of JSON values: these, and their hash."""
    return json.dumps([content, digest(content)])


def card_content(text: str | bytes) -> Any:
    """The content of a card. Raises DamagedError."""
    try:
        content, promised = json.loads(text)
    except (ValueError, TypeError) as error:
        raise DamagedError("not a card") from error
    if promised != digest(content):
        raise DamagedError("not what was written (its hash differs)")
    return content


def partial(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has: for what is written there and renamed to `path` once it is complete."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` in one step: readers see the old text or the new, never a part."""
    unfinished = partial(path)
    unfinished.write_text(text)
    os.replace(unfinished, path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
