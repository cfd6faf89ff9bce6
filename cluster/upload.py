"""What of a folder goes up to a cluster with a job: counted by Ray's own walker, so that what is said is what is sent.

Ray puts the package into the memory of its control plane, so it has to be small. It reads .gitignore and .rayignore, in the folder and
below, leaves out `.git`, `.venv`, `venv` and `__pycache__`, and does not compress (2.60).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import ClusterError, ray_internals

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
    patterns = (*EXCLUDES, *excludes)
    files, uri = ray_internals.upload_files(folder, patterns)
    check_size(files, limit_bytes=ray_internals.upload_limit())
    return Package(folder, patterns, files, uri)


def check_size(files: dict[str, int], *, limit_bytes: int) -> None:
    """Raises ClusterError, naming the largest files, if one of them is larger than FILE_BYTES or all are more than `limit_bytes`."""
    largest = sorted(files, key=lambda name: -files[name])
    if large := [name for name in largest if files[name] > FILE_BYTES]:
        raise ClusterError(f"{_named(large, files)}: a file that goes up may have {_size(FILE_BYTES)} at most; {_LEAVE_OUT}")
    if (whole := sum(files.values())) >= limit_bytes:
        raise ClusterError(
            f"{len(files):,} files of {_size(whole)} would go up, and Ray takes less than {_size(limit_bytes)}; "
            f"the largest: {_named(largest, files)}; {_LEAVE_OUT}"
        )


def _named(names: Sequence[str], files: dict[str, int]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"{name} ({_size(files[name])})" for name in names[:_NAMED]) + rest


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
