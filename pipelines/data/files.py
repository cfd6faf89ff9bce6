"""Files wherever they are: on this machine, in an object store, or on any filesystem that pyarrow or fsspec know.

Local files are hashed once and remembered by size and time of change; of an object store the entity tag is taken for the hash.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipelines.errors import shown
from pipelines.sealed import sha256, write_atomically
from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs

_WILDCARD = re.compile(r"[*?\[]")
_LISTED = 20
_PYARROWS = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # schemes that pyarrow itself reads
_SETTLED_NANOSECONDS = 2_000_000_000  # a file changed later than this may change again without another time of change


@dataclass(frozen=True)
class File:
    """One file: `uri` is an absolute path, or scheme://…; `name` what people are shown."""

    uri: str
    name: str

    @property
    def suffix(self) -> str:
        """The ending that tells the format, in lower case; `.gz` only tells how it is packed."""
        return Path(self.name.lower().removesuffix(".gz")).suffix

    @property
    def local(self) -> Path | None:
        """Where it is on this machine; None where it is elsewhere."""
        return None if "://" in self.uri else Path(self.uri)

    def open(self) -> pa.NativeFile:
        """The file as it is, to be read from any place. Raises DataError."""
        return self._opened("open_input_file")

    def stream(self) -> pa.NativeFile:
        """The content from the beginning, unpacked. Raises DataError."""
        return self._opened("open_input_stream", compression="gzip" if self.name.lower().endswith(".gz") else None)

    def size(self) -> int:
        """Bytes. Raises DataError if the file is not there."""
        return self._info().size

    def version(self) -> str:
        """What changes when the content does: size and time of change, or an entity tag. Cheap. Raises DataError."""
        if self.local is not None:
            info = self._info()
            return f"{info.size} {info.mtime_ns}"
        filesystem, path = filesystem_of(self.uri)
        with self.stream() as stream:
            tag = (stream.metadata() or {}).get("ETag", b"").decode().strip('"')
        handler = getattr(filesystem, "handler", None)
        return f"etag {tag}" if tag else f"key {handler.fs.ukey(path)}" if handler else f"{self._info().size} {self._info().mtime_ns}"

    def _info(self) -> pyarrow.fs.FileInfo:
        import pyarrow.fs

        filesystem, path = filesystem_of(self.uri)
        try:
            info = filesystem.get_file_info(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: {first_line(error)}") from None
        if info.type != pyarrow.fs.FileType.File:
            raise DataError(f"{self.name}: there is no such file any more")
        return info

    def _opened(self, how: str, **options: Any) -> pa.NativeFile:
        filesystem, path = filesystem_of(self.uri)
        try:
            return getattr(filesystem, how)(path, **options)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}: cannot be opened: {first_line(error)}") from None


def find(text: str) -> tuple[File, ...]:
    """The files that a path, a glob or a URI names, in the order of their names; a folder's are all below it.

    Hidden ones (a name that begins with a dot or an underscore) are passed over. Raises DataError if there are none.
    """
    import pyarrow.fs
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    place = text if "://" in text else absolute(text)
    filesystem, path = filesystem_of(place)
    try:
        if not _WILDCARD.search(path):
            info = filesystem.get_file_info(path)
            if info.type == pyarrow.fs.FileType.File:
                return (File(place, path.rpartition("/")[2]),)
            listed = info.type == pyarrow.fs.FileType.Directory and _below(filesystem, path)
            matching, root = listed or [], path.rstrip("/")
        else:
            root = path[: _WILDCARD.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
            pattern = re.compile(glob_translate(path))
            matching = [found for found in _below(filesystem, root) if pattern.fullmatch(found)]
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(text)}: cannot be reached: {first_line(error)}") from None
    names = [(found, found.removeprefix(root).lstrip("/")) for found in sorted(matching)]
    files = tuple(File(_uri_of(place, found), name) for found, name in names if not re.search(r"(^|/)[._]", name))
    if not files:
        raise DataError(f"{shown(text)}: there is no such file")
    return files


def is_folder(text: str) -> bool:
    """Whether a path or URI names a folder. Raises DataError if it cannot be reached."""
    import pyarrow.fs

    filesystem, path = filesystem_of(text if "://" in text else absolute(text))
    try:
        return filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(text)}: cannot be reached: {first_line(error)}") from None


def identity(files: Sequence[File], scratch: Path) -> dict[str, str]:
    """What the content of files is: name -> sha256 or entity tag; many files under one hash of them all. Raises DataError."""
    remembered = _Hashes(scratch / ".hashes.json")
    found = {file.name: file.version() if file.local is None else remembered.of(file.local, file) for file in files}
    remembered.save()
    if len(found) <= _LISTED:
        return found
    return {f"{len(found):,} files": hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()}


class _Hashes:
    """sha256 of local files, remembered by path, size, time of change and inode in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path, self._new = path, False
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            found = None
        known = found if isinstance(found, dict) else {}
        self._known = {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 4}

    def of(self, path: Path, file: File) -> str:
        try:
            stat = path.stat()
            seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            if self._known.get(str(path), [])[:3] == seen:
                return self._known[str(path)][3]
            content = sha256(path)
        except OSError as error:
            raise DataError(f"{file.name}: cannot be read: {error.strerror or error}") from None
        if time.time_ns() - stat.st_mtime_ns > _SETTLED_NANOSECONDS:
            self._known[str(path)], self._new = [*seen, content], True
        return content

    def save(self) -> None:
        if self._new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._known))


def absolute(text: str) -> str:
    """A path that a person names, from the root. Raises DataError."""
    try:
        return os.path.abspath(Path(text).expanduser())  # not resolve(): labels lie beside the name given, not beside what a link points to
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{text[:100]!r} can be no path: {error}") from None


def filesystem_of(place: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of an absolute path or URI, and the path on it. Raises DataError."""
    import pyarrow.fs

    if "://" not in place:
        return pyarrow.fs.LocalFileSystem(), place
    parts = urlsplit(place)
    filesystem = _of_scheme(parts.scheme, parts.netloc, parts.query)
    if isinstance(filesystem, pyarrow.fs.PyFileSystem):
        return filesystem, filesystem.handler.fs._strip_protocol(place)
    fragment = f"#{parts.fragment}" if parts.fragment else ""  # which an object's name may hold, but no URI of a filesystem has
    return filesystem, unquote(f"{parts.netloc.rpartition('@')[2]}{parts.path}{fragment}")


@functools.lru_cache(maxsize=32)
def _of_scheme(scheme: str, host: str, query: str) -> pyarrow.fs.FileSystem:
    import fsspec  # type: ignore[import-untyped]
    import pyarrow as pa
    import pyarrow.fs

    try:
        return pyarrow.fs.FileSystem.from_uri(f"{scheme}://{host}/{'?' if query else ''}{query}")[0]
    except pa.ArrowInvalid:
        if scheme in _PYARROWS:
            told = "what stands behind the question mark is no option of it (as a wildcard use *)" if query else "names no bucket"
            raise DataError(f"{scheme}://{host.rpartition('@')[2]}: {told}") from None
    try:
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError) as error:
        raise DataError(f"{scheme}://: no such filesystem: {first_line(error)}") from None


def _below(filesystem: pyarrow.fs.FileSystem, root: str) -> list[str]:
    import pyarrow.fs

    listed = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True, recursive=True))
    return [info.path for info in listed if info.type == pyarrow.fs.FileType.File]


def _uri_of(place: str, path: str) -> str:
    """The URI of `path` on the filesystem of `place`."""
    if "://" not in place:
        return path
    handler = getattr(filesystem_of(place)[0], "handler", None)
    if handler:
        return handler.fs.unstrip_protocol(path)
    parts = urlsplit(place)
    inside = path.removeprefix(parts.netloc.rpartition("@")[2])
    return parts._replace(path=re.sub(r"[%?#]", lambda found: f"%{ord(found[0]):X}", inside), fragment="").geturl()


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
