"""Where prepared datasets are kept: a folder that every node reaches, or a URI of which each node keeps copies in a cache.

A dataset is complete when its manifest stands, which is written last. In a folder the whole is renamed into place; an object store knows no
such step, but whoever makes the same dataset at the same time writes the same bytes under the same names.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.data import files
from pipelines.errors import shown
from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow.fs

    from pipelines.run_settings import Run


@dataclass(frozen=True)
class Store:
    """Named files in folders below `place`, an absolute path or a URI ("": in `place` itself); `cache` is a folder of this node."""

    place: str
    cache: Path

    @property
    def remote(self) -> bool:
        return "://" in self.place

    def folder(self, name: str) -> Path:
        """Where the files of `name` are on this node, once they are there."""
        return (self.cache / "datasets" if self.remote else Path(self.place)) / name

    def has(self, folder: str, name: str) -> bool:
        """Raises DataError if the store cannot be reached."""
        if not self.remote:
            return (Path(self.place) / folder / name).is_file()
        import pyarrow.fs

        with self._reached() as (filesystem, root):
            return filesystem.get_file_info(_below(root, folder, name)).type == pyarrow.fs.FileType.File

    def put(self, file: Path, folder: str, name: str) -> None:
        """Move a local file into the store, in one step."""
        if not self.remote:
            target = Path(self.place) / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            return
        import pyarrow.fs

        with self._reached() as (filesystem, root):
            pyarrow.fs.copy_files(str(file), _below(root, folder, name), pyarrow.fs.LocalFileSystem(), filesystem, use_threads=False)
        file.unlink()

    def get(self, folder: str, name: str, into: Path) -> Path:
        """A file of the store as a local one: itself, or a copy in the folder `into`."""
        if not self.remote:
            return Path(self.place) / folder / name
        import pyarrow.fs

        into.mkdir(parents=True, exist_ok=True)
        with self._reached() as (filesystem, root):
            pyarrow.fs.copy_files(_below(root, folder, name), str(into / name), filesystem, pyarrow.fs.LocalFileSystem(), use_threads=False)
        return into / name

    def names(self, folder: str) -> list[str]:
        """What lies in a folder; nothing if there is no such folder."""
        if not self.remote:
            here = Path(self.place) / folder
            return sorted(path.name for path in here.iterdir()) if here.is_dir() else []
        import pyarrow.fs

        with self._reached() as (filesystem, root):
            listed = filesystem.get_file_info(pyarrow.fs.FileSelector(_below(root, folder), allow_not_found=True))
            return sorted(info.base_name for info in listed)

    def remove_file(self, name: str) -> None:
        if not self.remote:
            (Path(self.place) / name).unlink(missing_ok=True)
            return
        with self._reached() as (filesystem, root):
            filesystem.delete_file(_below(root, name))

    def remove(self, folder: str) -> None:
        if not self.remote:
            shutil.rmtree(Path(self.place) / folder, ignore_errors=True)
            return
        import pyarrow.fs

        shutil.rmtree(self.folder(folder), ignore_errors=True)
        with self._reached() as (filesystem, root):
            if filesystem.get_file_info(_below(root, folder)).type == pyarrow.fs.FileType.Directory:
                filesystem.delete_dir(_below(root, folder))

    @contextmanager
    def writing(self, name: str, *, last: str) -> Iterator[str]:
        """The folder to write `name` into, the file `last` last; in place at the end, or nowhere if that fails."""
        folder = name if self.remote else f".{name}.{uuid.uuid4().hex[:8]}"
        try:
            yield folder
        except BaseException:
            if folder != name:  # in a store, another process may be writing the same; without `last` nobody takes it for whole
                self.remove(folder)
            raise
        if folder != name:
            _rename(Path(self.place) / folder, Path(self.place) / name, last)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A local folder of the caller's own, on the disk of the store where that is local, gone at the end."""
        parent = self.cache if self.remote else Path(self.place)
        folder = parent / f".work.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Be the only process of this node that works at `name`; others wait. The kernel frees the lock of a killed process."""
        self.cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.cache / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _reached(self) -> Iterator[tuple[pyarrow.fs.FileSystem, str]]:
        try:
            filesystem, root = files.filesystem_of(self.place)
            yield filesystem, root.rstrip("/")
        except OSError as error:
            raise DataError(f"{shown(self.place)}: {files.first_line(error)}") from error


def _below(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def store_of(run: Run) -> Store:
    """Where the run's prepared data are kept."""
    cache = run.data.cache or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "raylway")
    place = run.data.prepared or str(run.root / "datasets")
    return Store(place if "://" in place else str(Path(place).expanduser().resolve()), Path(cache).expanduser().resolve())


def _rename(folder: Path, target: Path, last: str) -> None:
    if target.is_dir() and not (target / last).is_file():  # what has lost its manifest can never be trusted again
        shutil.rmtree(target)
    try:
        os.rename(folder, target)
    except OSError:  # another process was first; what it made has the same name, so the same content
        shutil.rmtree(folder)
