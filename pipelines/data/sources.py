"""Which reader reads what a recipe names: an embedded data set, files of any format anywhere, a data set of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipelines.data import files
from pipelines.data.embedded import EMBEDDED
from pipelines.data.files import File
from pipelines.data.readers import idx
from pipelines.data.readers.arrays import Npy, Npz
from pipelines.data.readers.columnar import Arrow, Parquet
from pipelines.data.readers.delimited import Delimited
from pipelines.data.readers.hub import Hub, is_saved
from pipelines.data.readers.idx import Idx
from pipelines.data.readers.image_folder import ImageFolder, pictures_in
from pipelines.data.readers.jsonlines import JsonLines
from pipelines.data.readers.path_columns import Opened
from pipelines.data.readers.plain_text import PlainText
from pipelines.data.source import Files, Reader, Renamed, Source, Together
from pipelines.data.splits import SPELLINGS, SPLITS
from pipelines.errors import shown
from workloads.base import DataError

_HUB = "hf://"
_ENTERED: Mapping[str, Callable[[File], Reader]] = {
    ".parquet": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".ipc": Arrow,
    ".npy": Npy,
    ".npz": Npz,
}
_PARSED: Mapping[str, Callable[[File, Path, bool], Reader]] = {
    ".csv": Delimited,
    ".tsv": Delimited,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".txt": PlainText,
    ".md": PlainText,
}


@dataclass(frozen=True)
class Reading:
    """How what a recipe names is to be read."""

    scratch: Path
    """A folder for what may be remembered of it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Columns that the task asks for -> the source's own names of them."""
    paths: tuple[str, ...] = ()
    """Columns that may hold paths of files, of which the content is given."""
    skip: bool = False
    """Leave rows out that cannot even be read."""
    labelled: bool = True
    """Whether pictures must have labels (a folder a class, a file beside); if not, those they have are not read."""


def open_source(text: str, how: Reading) -> Source:
    """What `text` names: an embedded data set, a path, a glob, a URI, or hf://name[:config]. Raises DataError.

    A data set of the hub that has a training split and others is Together, as if each had been given.
    """
    if text in EMBEDDED:
        return _renamed(EMBEDDED[text], how)
    if text.startswith(_HUB):
        return _of_hub(text, how)
    if "://" not in text and files.is_folder(text) and is_saved(Path(text).expanduser()):
        return _of_hub(f"{_HUB}{Path(text).expanduser().absolute()}", how)
    found = _renamed(_of_files(text, how), how)
    if set(how.paths) & set(found.columns()):
        return Opened(found, how.paths, _folder_of(text))
    return found


def open_together(texts: Mapping[str, str], how: Reading) -> Together:
    """Splits that are sources of their own, by name; of a data set of the hub that has several, the one of that name. Raises DataError."""
    found = {}
    for split, text in texts.items():
        source = open_source(text, how)
        found[split] = dict(zip(source.names, source.readers, strict=True)).get(split, source) if isinstance(source, Together) else source
    return Together(tuple(found), tuple(found.values()))


def _renamed(source: Source, how: Reading) -> Source:
    return Renamed(source, tuple(sorted(how.names.items()))) if how.names else source


def _of_hub(text: str, how: Reading) -> Source:
    there = {SPELLINGS[name.lower()]: name for name in Hub(text, None, how.scratch).splits() if name.lower() in SPELLINGS}
    if 0 not in there or len(there) == 1:
        return _renamed(Hub(text, there.get(0), how.scratch), how)
    splits = {SPLITS[number]: _renamed(Hub(text, there[number], how.scratch), how) for number in sorted(there)}
    return Together(tuple(splits), tuple(splits.values()))


def _folder_of(text: str) -> str:
    """What the paths in a table are relative to: the folder given, else that of the file, or of all that a glob can find."""
    if "://" not in text:
        place = Path(text).expanduser()
        return str(place if files.is_folder(text) else Path(re.split(r"[*?\[]", str(place))[0] + "_").parent)
    parts = urlsplit(text)  # behind a question mark stand options, which hold for the files as well
    path = parts.path if files.is_folder(text) else re.split(r"[*\[]", parts.path)[0].rpartition("/")[0]
    return parts._replace(path=path).geturl()


def _of_files(text: str, how: Reading) -> Files:
    try:
        found = files.find(text)
    except DataError as error:
        raise DataError(str(error) if "/" in text else f"{error}, nor an embedded data set ({', '.join(EMBEDDED)})") from None
    label = PurePosixPath(found[0].name if len(found) == 1 else re.split(r"/[^/]*[*?\[]", text.rstrip("/"))[0]).name.split(".")[0]
    kinds = {file.suffix for file in found}
    if pictures := pictures_in(found):
        return Files(label, (ImageFolder(pictures, how.labelled),), pictures, how.scratch)
    if len(found) == 1 and not kinds & {*_ENTERED, *_PARSED}:
        if not how.labelled:
            return Files(label, (Idx(found[0]),), (found[0],), how.scratch)
        pair = idx.beside(found[0])
        return Files(label, (pair,), (found[0], pair.labels or found[0]), how.scratch)
    data = tuple(file for file in found if file.suffix in {*_ENTERED, *_PARSED})
    if files.is_folder(text):  # a folder has notes beside its data: README.md, dataset_info.json
        data = tuple(file for file in data if file.suffix not in (".md", ".json")) or data
    if not data or len({file.suffix for file in data}) > 1:
        raise DataError(f"{shown(text)}: files of one format are expected, not {', '.join(sorted(kinds))}")
    kind = data[0].suffix
    readers = tuple(_ENTERED[kind](file) if kind in _ENTERED else _PARSED[kind](file, how.scratch, how.skip) for file in data)
    return Files(label or "data", readers, data, how.scratch)
