"""Storage of prepared datasets: a folder that every node reaches, or a URI of which each node keeps copies in a cache.

A dataset is complete when its manifest stands, which is written last. In a folder the whole is renamed into place; an object store knows no
such step, but all who make the same dataset at the same time write the same bytes under the same names.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.data import files
from pipelines.sealed import locked, partial
from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow.fs

    from pipelines.settings import Data


@dataclass(frozen=True)
class Store:
    """Named files in folders below `place`, an absolute path or a URI ("": in `place` itself); `cache` is a folder of this node."""

    place: str
    cache: Path

    @property
    def remote(self) -> bool:
        return "://" in self.place

    def folder(self, name: str) -> Path:
        """Folder of the files of `name` on this node, once they are here."""
        return (self.cache / "datasets" if self.remote else Path(self.place)) / name

    def has(self, folder: str, name: str) -> bool:
        """Raises DataError if the store cannot be reached."""
        with self._path(folder, name) as (filesystem, path):
            return bool(filesystem.get_file_info(path).is_file)

    def names(self, folder: str) -> list[str]:
        """Files and folders in a folder, sorted; none if there is no such folder."""
        import pyarrow.fs

        with self._path(folder) as (filesystem, path):
            return sorted(info.base_name for info in filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True)))

    def put(self, file: Path, folder: str, name: str) -> None:
        """Move a local file into the store, in one step."""
        if self.remote:
            self._copy(file, folder, name, upload=True)
            file.unlink()
        else:
            target = self.folder(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)

    def get(self, folder: str, name: str, into: Path) -> Path:
        """A file of the store as a local one: itself, or a copy in the folder `into`."""
        if not self.remote:
            return self.folder(folder) / name
        into.mkdir(parents=True, exist_ok=True)
        self._copy(into / name, folder, name, upload=False)
        return into / name

    def remove_file(self, name: str) -> None:
        with self._path(name) as (filesystem, path), suppress(FileNotFoundError):
            filesystem.delete_file(path)

    def remove(self, folder: str) -> None:
        """Delete a folder, and this node's copy of it."""
        shutil.rmtree(self.folder(folder), ignore_errors=True)
        if self.remote:
            with self._path(folder) as (filesystem, path), suppress(FileNotFoundError):
                filesystem.delete_dir(path)

    @contextmanager
    def writing(self, name: str, *, last: str) -> Iterator[str]:
        """The folder to write `name` into, the file `last` last; in place at the end, or nowhere if that fails."""
        if self.remote:  # another process may be writing the same; without `last` nobody takes it for complete
            yield name
            return
        target = self.folder(name)
        folder = partial(target)
        try:
            yield folder.name
        except BaseException:
            self.remove(folder.name)
            raise
        if target.is_dir() and not (target / last).is_file():  # what has lost its manifest can never be trusted again
            shutil.rmtree(target)
        try:
            os.rename(folder, target)
        except OSError:  # another process was first; what it made has the same name, so the same content
            shutil.rmtree(folder)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A local folder of the caller's own, on the disk of the store where that is local, gone at the end."""
        folder = (self.cache if self.remote else Path(self.place)) / f".work.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Be the only process of this node that works at `name`; others wait."""
        return locked(self.cache / f".{name}.lock")

    @contextmanager
    def _path(self, *parts: str) -> Iterator[tuple[pyarrow.fs.FileSystem, str]]:
        """The filesystem, and the path on it; what it raises in the block becomes a DataError that names the store."""
        try:
            filesystem, root = files.filesystem_of(self.place)
            yield filesystem, "/".join(part for part in (root.rstrip("/"), *parts) if part)
        except OSError as error:
            raise DataError(f"{files.shown(self.place)}: {files.first_line(error)}") from error

    def _copy(self, local: Path, folder: str, name: str, *, upload: bool) -> None:
        import pyarrow.fs

        with self._path(folder, name) as (filesystem, path):
            here, there = (str(local), pyarrow.fs.LocalFileSystem()), (path, filesystem)
            (source, source_files), (target, target_files) = (here, there) if upload else (there, here)
            pyarrow.fs.copy_files(source, target, source_files, target_files, use_threads=False)


def store_of(data: Data, root: Path) -> Store:
    """The store of prepared data that the settings name, by default a folder below `root`, the run's storage."""
    cache = data.cache or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "raylway")
    place = data.prepared or str(root / "datasets")
    return Store(place if "://" in place else str(Path(place).expanduser().resolve()), Path(cache).expanduser().resolve())
