"""Files wherever they are: on this machine, in an object store, or on any filesystem that pyarrow or fsspec know.

Local files are hashed once and remembered by size and time of change; of an object store the entity tag is taken for the hash.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from workloads.base import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs

_WILDCARD = re.compile(r"[*?\[]")
_PYARROWS = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # schemes that pyarrow itself reads


def shown(text: str) -> str:
    """A path or URI as it may be printed: without what stands before an @, or behind a question mark."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*", "", text)


@dataclass(frozen=True)
class File:
    """One file: `uri` is an absolute path, or scheme://…; `name` is shown to people."""

    uri: str
    name: str

    @property
    def packed(self) -> bool:
        """The content is gzipped."""
        return self.name.lower().endswith(".gz")

    @property
    def suffix(self) -> str:
        """The ending that names the format, in lower case, without `.gz`."""
        return Path(self.name.lower().removesuffix(".gz")).suffix

    @property
    def local(self) -> Path | None:
        """The path on this machine; None where the file is elsewhere."""
        return None if "://" in self.uri else Path(self.uri)

    def open(self) -> pa.NativeFile:
        """The file as it is, to be read from any place. Raises DataError."""
        return self._opened("open_input_file")

    def stream(self) -> pa.NativeFile:
        """The content from the beginning, unpacked. Raises DataError."""
        return self._opened("open_input_stream", compression="gzip" if self.packed else None)

    def exists(self) -> bool:
        try:
            return self.size() >= 0
        except DataError:
            return False

    def size(self) -> int:
        """Bytes. Raises DataError if the file is not there."""
        return self._info().size

    def version(self) -> str:
        """Size and time of change, or an entity tag: another text once the content changes. Cheap. Raises DataError."""
        if self.local is None:
            filesystem, path = filesystem_of(self.uri)
            with self.stream() as stream:
                tag = (stream.metadata() or {}).get("ETag", b"").decode().strip('"')
            if tag:
                return f"etag {tag}"
            if handler := getattr(filesystem, "handler", None):
                return f"key {handler.fs.ukey(path)}"
        info = self._info()
        return f"{info.size} {info.mtime_ns}"

    def _info(self) -> pyarrow.fs.FileInfo:
        import pyarrow.fs

        info = _info(self.uri, self.name)
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
        if wildcard := _WILDCARD.search(path):
            root, pattern = path[: wildcard.start()].rpartition("/")[0], re.compile(glob_translate(path))
            matching = [below for below in _below(filesystem, root) if pattern.fullmatch(below)]
        else:
            root, info = path.rstrip("/"), filesystem.get_file_info(path)
            if info.type == pyarrow.fs.FileType.File:
                return (File(place, path.rpartition("/")[2]),)
            matching = _below(filesystem, path) if info.type == pyarrow.fs.FileType.Directory else []
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(text)}: cannot be reached: {first_line(error)}") from None
    names = {below: below.removeprefix(root).lstrip("/") for below in sorted(matching)}
    files = tuple(File(_uri_of(place, below), name) for below, name in names.items() if not re.search(r"(^|/)[._]", name))
    if not files:
        raise DataError(f"{shown(text)}: there is no such file")
    return files


def is_folder(text: str) -> bool:
    """True if a path or URI names a folder. Raises DataError if it cannot be reached."""
    import pyarrow.fs

    return _info(text if "://" in text else absolute(text), shown(text)).type == pyarrow.fs.FileType.Directory


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
            problem = "what stands behind the question mark is no option of it (as a wildcard use *)" if query else "names no bucket"
            raise DataError(f"{scheme}://{host.rpartition('@')[2]}: {problem}") from None
    try:
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError) as error:
        raise DataError(f"{scheme}://: no such filesystem: {first_line(error)}") from None


def _info(place: str, name: str) -> pyarrow.fs.FileInfo:
    filesystem, path = filesystem_of(place)
    try:
        return filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be reached: {first_line(error)}") from None


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
    return parts._replace(path=re.sub(r"[%?#]", lambda match: f"%{ord(match[0]):X}", inside), fragment="").geturl()


def with_path(place: str, change: Callable[[str], str]) -> str:
    """An absolute path or URI whose path is changed; the host and the options of a URI stay."""
    if "://" not in place:
        return change(place)
    parts = urlsplit(place)
    return parts._replace(path=change(parts.path)).geturl()


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
