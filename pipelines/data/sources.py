"""Open the data that a recipe names: an embedded data set, files of any format on any filesystem, a data set of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.data import files
from pipelines.data.embedded import EMBEDDED
from pipelines.data.files import File, shown
from pipelines.data.readers.arrays import Idx, Npy, Npz, labels_beside
from pipelines.data.readers.columnar import Arrow, Parquet
from pipelines.data.readers.delimited import Delimited
from pipelines.data.readers.hub import Hub, is_saved
from pipelines.data.readers.image_files import ImageFolder, PathColumns, pictures_in
from pipelines.data.readers.lines import JsonLines, PlainText
from pipelines.data.readers.parse_cache import Parsed
from pipelines.data.readers.planned import Files
from pipelines.data.source import Reader, Renamed, Source, SplitSources
from pipelines.data.splits import SPELLINGS, SPLITS
from workloads.base import DataError

_HUB = "hf://"
_IN_PLACE: Mapping[str, Callable[[File], Reader]] = {
    ".parquet": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".ipc": Arrow,
    ".npy": Npy,
}
_PARSED: Mapping[str, type[Parsed]] = {
    ".csv": Delimited,
    ".tsv": Delimited,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".txt": PlainText,
    ".md": PlainText,
    ".npz": Npz,
}


@dataclass(frozen=True)
class ReadOptions:
    """Options of `open_source`."""

    scratch: Path
    """A local folder for parsed files and the hashes of files."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Column name of the task -> column name in the source."""
    paths: tuple[str, ...] = ()
    """Columns that may hold paths of files: the content of the files is read in place of the paths."""
    skip: bool = False
    """Leave out rows that cannot be parsed, instead of raising for the first."""
    labelled: bool = True
    """Images have labels: the class folder, or the labels file beside an IDX file. False: read no labels, even if there are some."""


def open_source(text: str, options: ReadOptions) -> Source:
    """Open an embedded data set, a path, a glob, a URI, or hf://name[:config]. Raises DataError.

    A data set of the hub with a training split and others becomes SplitSources, one source per split.
    """
    if text in EMBEDDED:
        return _renamed(EMBEDDED[text], options)
    if text.startswith(_HUB):
        return _open_hub(text, options)
    if "://" not in text and files.is_folder(text) and is_saved(Path(files.absolute(text))):
        return _open_hub(_HUB + files.absolute(text), options)
    source = _renamed(_open_files(text, options), options)
    return PathColumns(source, options.paths, _folder_of(text)) if set(options.paths) & set(source.columns()) else source


def open_splits(texts: Mapping[str, str], options: ReadOptions) -> SplitSources:
    """Open a source for each split, by the split's name. Of a hub data set with several splits, the one of that name. Raises DataError."""
    sources = {}
    for split, text in texts.items():
        source = open_source(text, options)
        own = dict(zip(source.names, source.readers, strict=True)) if isinstance(source, SplitSources) else {}
        sources[split] = own.get(split, source)
    return SplitSources(tuple(sources), tuple(sources.values()))


def _renamed(source: Source, options: ReadOptions) -> Source:
    return Renamed(source, tuple(sorted(options.names.items()))) if options.names else source


def _open_hub(text: str, options: ReadOptions) -> Source:
    names = Hub(text, None, options.scratch).splits()
    spelled = {SPELLINGS[name.lower()]: name for name in names if name.lower() in SPELLINGS}
    if 0 not in spelled or len(spelled) == 1:
        return _renamed(Hub(text, spelled.get(0), options.scratch), options)
    splits = {SPLITS[number]: _renamed(Hub(text, spelled[number], options.scratch), options) for number in sorted(spelled)}
    return SplitSources(tuple(splits), tuple(splits.values()))


def _folder_of(text: str) -> str:
    """The folder that paths in a table are relative to: `text` if it is a folder, else the parent of the file or of the first wildcard."""
    place, wildcard = (text, r"[*\[]") if "://" in text else (files.absolute(text), r"[*?\[]")  # a URI's ? begins its options
    return place if files.is_folder(text) else files.with_path(place, lambda path: re.split(wildcard, path)[0].rpartition("/")[0])


def _open_files(text: str, options: ReadOptions) -> Files:
    try:
        found = files.find(text)
    except DataError as error:
        raise DataError(str(error) if "/" in text else f"{error}, nor an embedded data set ({', '.join(EMBEDDED)})") from None
    label = PurePosixPath(found[0].name if len(found) == 1 else re.split(r"/[^/]*[*?\[]", text.rstrip("/"))[0]).name.split(".")[0]
    if pictures := pictures_in(found):
        return Files(label, (ImageFolder(pictures, options.labelled),), pictures, options.scratch)
    if len(found) == 1 and found[0].suffix not in {*_IN_PLACE, *_PARSED}:
        labels = labels_beside(found[0]) if options.labelled else None
        pair = Idx(found[0], options.scratch, options.skip, labels)
        return Files(label, (pair,), (found[0], labels) if labels else found, options.scratch)
    data = tuple(file for file in found if file.suffix in {*_IN_PLACE, *_PARSED})
    if files.is_folder(text):  # data sets have README.md and dataset_info.json beside the data
        data = tuple(file for file in data if file.suffix not in (".md", ".json")) or data
    if len({file.suffix for file in data}) != 1:
        kinds = ", ".join(sorted({file.suffix for file in found}))
        raise DataError(f"{shown(text)}: files of one format are expected, not {kinds}")
    return Files(label or "data", tuple(_reader(file, options) for file in data), data, options.scratch)


def _reader(file: File, options: ReadOptions) -> Reader:
    in_place = _IN_PLACE.get(file.suffix)
    return in_place(file) if in_place else _PARSED[file.suffix](file, options.scratch, options.skip)
