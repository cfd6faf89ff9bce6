"""Files that prove themselves: size and sha256 of each, written into a manifest and compared before anything is believed."""

from __future__ import annotations

import ast
import functools
import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_PARSING = threading.Lock()  # two threads that parse at once may end in "AST constructor recursion depth mismatch" (Python 3.11)


class File(BaseModel):
    """What a file in a manifest must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


def describe(path: Path) -> File:
    return File(bytes=path.stat().st_size, sha256=sha256(path))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sha256(files: Iterable[Path]) -> str:
    """One hash over several source files, whatever the order they are given in."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()


def imported(file: Path, *, nested: bool) -> set[Path]:
    """A Python file and the files that it imports relatively, and these in turn; `nested`: also those imported inside functions."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        stat = path.stat()
        waiting += _imports(path, nested, stat.st_mtime_ns, stat.st_size)
    return found


@functools.lru_cache(maxsize=1000)  # a sweep asks for each trial, and parsing a network's files takes 0.1 s
def _imports(path: Path, nested: bool, modified: int, size: int) -> tuple[Path, ...]:
    """What a file that was last `modified` then imports relatively."""
    with _PARSING:
        tree = ast.parse(path.read_bytes())
    named: list[Path] = []
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            named += [folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)]
    return tuple(named)


def mismatch(folder: Path, files: Mapping[str, File], *, content: bool = True) -> str | None:
    """What is wrong with the first file of `folder` that is not as `files` says, or None. `content` compares hashes too."""
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
