"""What of a folder goes up to a cluster with a job: counted by Ray's own walker, so that what is said is what is sent.

Ray puts the package into the memory of its control plane, so it has to be small. It reads .gitignore and .rayignore, in the folder and
below, leaves out `.git`, `.venv`, `venv` and `__pycache__`, and does not compress (2.60).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from cluster.errors import ClusterError

EXCLUDES = (
    "/runs/",
    "/mlruns/",
    "*.egg-info/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
    ".env",
    ".netrc",
)
"""Left out beside what Ray, .gitignore and .rayignore leave out: caches, runs, and files that hold passwords by custom."""
FILE_BYTES = 100 << 20
"""Most bytes of one file."""
_NAMED = 3
_LEAVE_OUT = "leave files out by .gitignore, .rayignore or --exclude PATTERN; data belong into a folder that every node reaches"


@dataclass(frozen=True)
class Package:
    """What goes up of `folder`: its files (relative path -> bytes), and the URI that Ray gives to this content."""

    folder: Path
    excludes: tuple[str, ...]
    files: dict[str, int]
    uri: str

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def package_of(folder: Path, excludes: Sequence[str] = ()) -> Package:
    """What goes up of `folder` with further patterns left out. Raises ClusterError, naming the largest files, if it is too much."""
    logging.getLogger(packaging.__name__).setLevel(logging.ERROR)
    given = (*EXCLUDES, *excludes)
    every, honoured = [*ray_constants.get_runtime_env_default_excludes(), *given], _honours_gitignore()
    files: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(folder))] = path.stat().st_size

    packaging._dir_travel(folder, [packaging._get_excludes(folder, every)], count, include_gitignore=honoured)
    check_size(files)
    return Package(folder, given, files, packaging.get_uri_for_directory(str(folder), honoured, excludes=every))


def check_size(files: dict[str, int], *, whole_bytes: int = packaging.GCS_STORAGE_MAX_SIZE) -> None:
    """Raises ClusterError, naming the largest files, if one of them is larger than FILE_BYTES or all are more than `whole_bytes`."""
    largest = sorted(files, key=lambda name: -files[name])
    if large := [name for name in largest if files[name] > FILE_BYTES]:
        raise ClusterError(f"{_named(large, files)}: a file that goes up may have {_size(FILE_BYTES)} at most; {_LEAVE_OUT}")
    if (whole := sum(files.values())) >= whole_bytes:
        raise ClusterError(
            f"{len(files):,} files of {_size(whole)} would go up, and Ray takes less than {_size(whole_bytes)}; "
            f"the largest: {_named(largest, files)}; {_LEAVE_OUT}"
        )


def _honours_gitignore() -> bool:
    return os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"


def _named(names: Sequence[str], files: dict[str, int]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"{name} ({_size(files[name])})" for name in names[:_NAMED]) + rest


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
