"""The record of a run: its folder, `<storage>/<experiment>/<run name>/`, is read and written here alone.

Every write is synced and replaces the file in one step. A damaged state file that heals counts as missing, so the command makes it
again; damage of any other is refused in one sentence (run_states.py).
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipelines import sealed
from pipelines.errors import StorageError
from pipelines.run_states import ABOUT, CONCLUDED, CONFIG, COST, ENDING, IDENTITY, MADE_WITH, SENT, About, Cost, Sent, State
from pipelines.settings import Settings
from pipelines.tracking import journal, provenance

T = TypeVar("T")


class _Inside:
    """A path inside a run's folder, as an attribute of it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, a sweep or a trial: the paths in it, its state files, and its locks.

    Journal, checkpoints and ledger can be made from nothing else; the page is made anew from the last checkpoint, marks, locks, log and
    Ray's files by the next command.
    """

    path: Path
    journal = _Inside("journal.jsonl")
    checkpoints = _Inside("checkpoints")
    ledger = _Inside("ledger.jsonl")
    """The facts of a sweep."""
    log = _Inside("run.log")
    page = _Inside("page")
    """Figures, texts and scores of a run that is trained, as its page in MLflow shows them."""
    scratch = _Inside(".ray")
    """Ray's own files of the run's workers."""
    abandoned = _Inside(".abandoned")
    """A mark for workers that wait for the data: preparing it failed."""
    pause = _Inside(".pause")
    """The request to workers to pause (pipelines.elastic)."""
    stop = _Inside(".stop")
    """A mark for the workers of a trial: end at the next validation."""

    def path_of(self, state: State[Any]) -> Path:
        return self.path / state.name

    def read(self, state: State[T]) -> T | None:
        """A state; None where it is missing, or damaged and can be made anew. StorageError where it is damaged and cannot."""
        path = self.path_of(state)
        try:
            return state.decode(path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:  # not damage: the storage cannot be read now
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError) as error:
            if state.heals:
                return None
            raise StorageError(f"{path}: damaged: {error}") from None

    def write(self, state: State[T], value: T) -> None:
        """Replace a state in one step, synced: readers and a power cut see the old one or the new, never a part."""
        path = self.path_of(state)
        unfinished = sealed.partial(path)
        try:
            unfinished.write_text(state.encode(value))
            sealed.sync(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        sealed.sync(self.path)

    def remove(self, state: State[Any]) -> None:
        self.path_of(state).unlink(missing_ok=True)

    @contextmanager
    def locked(self, role: str, *, wait_seconds: float) -> Iterator[None]:
        """Hold the lock of a `role` (driver, writer) of this run. The kernel frees the lock of a killed process at once.

        Raises StorageError if another process holds it for longer than `wait_seconds`.
        """
        descriptor = os.open(self.path / f".{role}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, wait_seconds, self.path, role)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def busy(self) -> bool:
        """True while a command works on the run."""
        try:
            with self.locked("driver", wait_seconds=0):
                return False
        except StorageError:
            return True


@dataclass
class Attempt:
    """One attempt at a run: its stage (startup, prepare, train, evaluate, register), the CPUs and GPUs of all workers, and the cost.

    A run that was stopped and resumed cost both times. The cost of a driver that was killed outright is not known.
    """

    began: float = field(default_factory=time.time)
    stage: str = "startup"
    cpus: float = 0.0
    gpus: float = 0.0
    _before: Cost | None = None
    _held: Cost = field(default_factory=Cost)
    _since: float | None = None

    def hold(self, workers: int, cpus: float, gpus: float, *, from_now: bool = False) -> None:
        """Count so many workers (0: this process) with so many CPUs and GPUs each, since the start, or from now on where they changed."""
        if from_now:
            self._held, self._since = self.cost(), time.time()
        self.cpus, self.gpus = max(workers, 1) * cpus, max(workers, 1) * gpus

    def cost(self) -> Cost:
        """The cost of this attempt until now."""
        seconds = time.time() - (self._since or self.began)
        return self._held + Cost(seconds, seconds * self.cpus / 3600, seconds * self.gpus / 3600)

    def settle(self, folder: RunFolder) -> Cost:
        """Add this attempt's cost to the one kept in the run's folder; returns the sum. Calling it again later adds nothing twice."""
        if self._before is None:
            self._before = folder.read(COST) or Cost()
        total = self._before + self.cost()
        folder.write(COST, total)
        return total


def claim(experiment: Path, name: str, identity: str) -> RunFolder:
    """Create or reopen the run folder of that name; StorageError if the name belongs to a run with other settings or data."""
    folder = RunFolder(experiment / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        owner = folder.read(IDENTITY)
    except StorageError:
        if not name.endswith(identity[:8]):
            raise
        owner = None  # the folder's name says whose it is
    if owner not in (None, identity):
        taken = folder.path_of(CONFIG)
        raise StorageError(f"name={name} is taken by a run with other settings or data: {taken}; choose another name")
    folder.write(IDENTITY, identity)
    return folder


def write_config(settings: Settings, folder: RunFolder) -> str:
    """Write all settings of a run into its folder; returns their text."""
    config = provenance.redact(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    folder.write(CONFIG, config)
    return config


def begin(folder: RunFolder, about: About) -> None:
    """Write the description of a run at the start of an attempt; void are the last one's marks, and its end unless all was computed."""
    for mark in (folder.abandoned, folder.pause):
        mark.unlink(missing_ok=True)
    folder.write(ABOUT, about)
    if folder.read(CONCLUDED) is None:
        folder.remove(ENDING)


def about(folder: RunFolder) -> About:
    """The description of the run in `folder`, with its settings. Raises StorageError where it is missing or damaged."""
    known = folder.read(ABOUT)
    if known is None:
        raise StorageError(f"{folder.path_of(ABOUT)}: missing, so it is not known which run this is")
    return replace(known, config=folder.read(CONFIG) or "")


def sent(folder: RunFolder) -> Sent:
    """The state of the run in MLflow; a new key for one that was never sent."""
    return folder.read(SENT) or Sent(os.urandom(16).hex())


def made_with(folder: RunFolder) -> dict[str, Any]:
    """{"commit", "versions", "diff"} of the code that made the run; if none is kept yet, the code that is here is kept."""
    kept = folder.read(MADE_WITH)
    if kept is None:
        kept = {"commit": provenance.git_commit() or "", "versions": provenance.versions(), "diff": provenance.git_diff() or ""}
        folder.write(MADE_WITH, kept)
    return kept


def unsent(folder: RunFolder) -> tuple[int, int]:
    """(values in the journal, values of those that MLflow does not have)."""
    offset = sent(folder).offset
    ends = [(len(point.metrics), end) for point, end in journal.read_from(folder.journal, 0)]
    return sum(values for values, _ in ends), sum(values for values, end in ends if end > offset)


def backlog(folder: RunFolder, now: float | None = None) -> tuple[int, float]:
    """(bytes of the journal that MLflow does not have, seconds for which the first of them has waited)."""
    known = folder.read(SENT)
    offset = known.offset if known else 0
    first = next(journal.read(folder.journal, offset), None)
    if first is None:
        return 0, 0.0
    return folder.journal.stat().st_size - offset, max((now or time.time()) - first.time / 1000, 0.0)


def slug(label: str) -> str:
    """At most 20 characters of a label, fit for a file name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in label.lower().encode("ascii", "ignore").decode())
    return "-".join(part for part in kept.split("-") if part)[:20].strip("-") or "data"


def check_writable(root: Path) -> None:
    """Raises StorageError, naming the folder and the cause, unless files can be made under `root`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        canary = root / f".canary.{uuid.uuid4().hex[:8]}"
        canary.write_text("")
        canary.unlink()
    except (OSError, ValueError) as error:
        raise StorageError(f"storage={root} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _take(descriptor: int, wait_seconds: float, path: Path, role: str) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 20, 0).decode() or "unknown"
                raise StorageError(f"{path} has a {role} already (process {holder}); wait for it or stop it") from None
            time.sleep(0.1)
