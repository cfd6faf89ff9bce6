"""Where answers are kept: a part a piece, each put in place whole, and beside it a card of what it holds; at the end, if asked, one file.

A piece is done when its card stands, which is written after its part. So what is killed goes on with the pieces that have none, and no row
is there twice. `_job.json` says what the parts are made of: parts of another job are never taken for one's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from pipelines.data import files
from pipelines.data.encode import Piece
from pipelines.data.store import Store
from pipelines.errors import RecipeError, StorageError, shown
from pipelines.evaluation import formats
from pipelines.evaluation.formats import ENDINGS, Format
from pipelines.run_record import RunFolder
from pipelines.sealed import write_atomically

_JOB, _DONE = "_job.json", "_done.json"


@dataclass(frozen=True)
class Output:
    """What the person named: a folder of parts, or one file, whose parts lie in a hidden folder beside it until it is whole."""

    text: str
    form: Format
    parts: Store
    """The folder of the parts."""
    file: tuple[Store, str] | None
    """The one file: where it lies, and its name."""

    @property
    def name(self) -> str:
        """What it is called in sentences."""
        return shown(self.text)

    @contextmanager
    def locked(self) -> Iterator[Path]:
        """Be the only process of this machine that writes it; a local folder for notes. Raises StorageError if another does."""
        place = self.parts.cache / f"output-{hashlib.sha256(self.parts.place.encode()).hexdigest()[:16]}"
        folder = place if self.parts.remote else Path(self.parts.place)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.name}: cannot be written: {error.strerror or error}") from error
        with RunFolder(folder).locked("predict", wait_seconds=2):
            for name in self._names():
                if name.startswith(".work."):  # a killed process left it
                    self.parts.remove(name)
            yield folder

    def begun(self) -> dict[str, Any] | None:
        """What was written when it was begun, or None. Raises StorageError where something else lies there."""
        if self.parts.has("", _JOB):
            return self._card(_JOB)
        if self.file and self.file[0].has("", self.file[1]):
            raise StorageError(f"{self.name}: is there already, and was not written by this command; name another, or move it away")
        if not self.file and any(not name.startswith(".") for name in self._names()):
            raise StorageError(f"{self.name}: is not empty, and holds no answers of this command; name another folder")
        return None

    def begin(self, job: dict[str, Any]) -> None:
        self._put(_JOB, job)

    def clear(self) -> None:
        """Forget what was written before."""
        for name in self._names():
            if name in (_JOB, _DONE) or name.startswith(("part-", "_part-")):
                self.parts.remove_file(name)
        if self.file and self.file[0].has("", self.file[1]):
            self.file[0].remove_file(self.file[1])

    def result(self) -> dict[str, Any] | None:
        """What was told at its end, if it was finished and is still there."""
        there = self.parts.has("", _DONE) and (self.file is None or self.file[0].has("", self.file[1]))
        return self._card(_DONE) if there else None

    def standing(self) -> dict[int, dict[str, Any]]:
        """The cards of the pieces that are done, by number."""
        names = [name for name in self._names() if name.startswith("_part-")]
        return {int(name[6:-5]): self._card(name) for name in names}

    def counted(self) -> int:
        """How many pieces are done."""
        return sum(name.startswith("_part-") for name in self._names())

    def put(self, piece: Piece, schema: pa.Schema, batches: Iterator[pa.RecordBatch], card: dict[str, Any]) -> dict[str, Any]:
        """Write a piece's rows as its part, then its card, which `batches` may fill while they are made."""
        with self.parts.workspace() as here:
            formats.write(here / "part", self.form, schema, batches, header=self.file is None)
            card["bytes"] = (here / "part").stat().st_size
            self.parts.put(here / "part", "", self.part(piece.number))
        self._put(f"_part-{piece.number:05}.json", card)
        return card

    def finish(self, numbers: Sequence[int], schema: pa.Schema, result: dict[str, Any]) -> None:
        """Join the parts if one file was asked for, and say that all is there."""
        if self.file:
            store, name = self.file
            with self.parts.workspace() as here:
                formats.join(self._fetched(numbers, here), here / "joined", self.form, schema)
                store.put(here / "joined", "", name)
        self._put(_DONE, result)
        for number in numbers:
            self.parts.remove_file(f"_part-{number:05}.json")
            if self.file:
                self.parts.remove_file(self.part(number))

    def part(self, number: int) -> str:
        return f"part-{number:05}.{self.form}"

    def _fetched(self, numbers: Sequence[int], here: Path) -> Iterator[Path]:
        for number in numbers:
            yield self.parts.get("", self.part(number), here)
            (here / self.part(number)).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return self.parts.names("")

    def _card(self, name: str) -> dict[str, Any]:
        with self.parts.workspace() as here:
            content = self.parts.get("", name, here).read_bytes()
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError):
            raise StorageError(f"{shown(self.parts.place)}/{name}: damaged; --again begins anew") from None

    def _put(self, name: str, card: dict[str, Any]) -> None:
        with self.parts.workspace() as here:
            write_atomically(here / name, json.dumps(card))
            self.parts.put(here / name, "", name)


def output_of(text: str, form: Format | None, cache: Path) -> Output:
    """The output that a person names: one file by its ending, else a folder. Raises RecipeError, DataError."""
    place = text if "://" in text else files.absolute(text)
    parent, name = _divided(place)
    ending = Path(name).suffix.lower()
    if text.endswith("/") or not ending or (form and ending not in ENDINGS):
        return Output(text, form or "parquet", Store(place, cache), None)
    if ending not in ENDINGS:
        raise RecipeError(f"{shown(text)}: files end in {', '.join(ENDINGS)}; a folder of parts ends in no dot and letters, or in /")
    if form and form != ENDINGS[ending]:
        raise RecipeError(f"--format {form}: {shown(text)} says {ENDINGS[ending]}")
    return Output(text, ENDINGS[ending], Store(_joined(parent, f".{name}.parts"), cache), (Store(parent, cache), name))


def check_apart(output: Output, source: str) -> None:
    """Raises RecipeError where answers would be written over, or in among, what is read."""
    if "://" in source or "://" in output.text:
        same = source.rstrip("/") == output.text.rstrip("/")
    else:
        read, written = (Path(os.path.realpath(files.absolute(one))) for one in (source, output.text))
        same = written == read or (read.is_dir() and read in written.parents)
    if same:
        raise RecipeError(f"{output.name}: lies in what is read; name another place")


def _divided(place: str) -> tuple[str, str]:
    """The folder of a path or URI, and the last name in it."""
    if "://" not in place:
        return str(Path(place).parent), Path(place).name
    parts = urlsplit(place)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    return parts._replace(path=folder).geturl(), name


def _joined(folder: str, name: str) -> str:
    if "://" not in folder:
        return str(Path(folder) / name)
    parts = urlsplit(folder)
    return parts._replace(path=f"{parts.path}/{name}").geturl()
