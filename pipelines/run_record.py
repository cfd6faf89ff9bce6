"""A run's folder: what lies where, and who may write in it."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.errors import StorageError
from pipelines.sealed import write_atomically as write_atomically
from pipelines.tracking import provenance

if TYPE_CHECKING:
    from pipelines.run_settings import Run


@dataclass(frozen=True)
class RunFolder:
    """`<storage>/<experiment>/<run name>/`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def identity(self) -> Path:
        """Hash of the settings and data that decide the weights; a name cannot be used for two of them."""
        return self.path / "identity"

    @property
    def fingerprint(self) -> Path:
        """Name of the prepared dataset that it is trained on."""
        return self.path / "fingerprint"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def result(self) -> Path:
        """The JSON of `raylway train`, written when all is done."""
        return self.path / "result.json"

    @property
    def about(self) -> Path:
        """What MLflow is told of the run before it begins."""
        return self.path / "about.json"

    @property
    def made_with(self) -> Path:
        """Commit, diff and packages of the code that made the run."""
        return self.path / "made_with.json"

    @property
    def page(self) -> Path:
        """Figures, texts and scores of a run that is trained, as its page in MLflow shows them."""
        return self.path / "page"

    @property
    def concluded(self) -> Path:
        """Stands from when all is computed until MLflow has all of it."""
        return self.path / "concluded.json"

    @property
    def ending(self) -> Path:
        """How the last go at the run ended."""
        return self.path / "ending.json"

    @property
    def sent(self) -> Path:
        """How far MLflow has been told of the run."""
        return self.path / "mlflow.json"

    @property
    def cost(self) -> Path:
        """What all attempts at the run have cost so far."""
        return self.path / "cost.json"

    @property
    def unpromoted(self) -> Path:
        """The model that the run registered, until the command has asked for its promotion."""
        return self.path / "unpromoted.json"

    @property
    def abandoned(self) -> Path:
        """Stands while workers that wait for the data should wait no longer: preparing it failed."""
        return self.path / ".abandoned"

    @property
    def pause(self) -> Path:
        """Says whether workers are asked to pause: pipelines.pausing."""
        return self.path / ".pause"

    @contextmanager
    def locked(self, role: str, *, wait_seconds: float) -> Iterator[None]:
        """Be the only `role` (driver, writer) of this run. The kernel frees the lock of a killed process at once.

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


def claim(run: Run, name: str, identity: str) -> RunFolder:
    """Create or reopen the run folder of that name; StorageError if the name belongs to a run with other settings or data."""
    folder = RunFolder(run.root / run.experiment / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.identity.exists() and folder.identity.read_text() != identity:
        raise StorageError(f"name={run.name} is taken by a run with other settings or data: {folder.config}; choose another name")
    write_atomically(folder.identity, identity)
    return folder


def write_config(run: Run, folder: RunFolder) -> str:
    """Keep all settings of a run in its folder; returns their text."""
    config = provenance.redact(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
    write_atomically(folder.config, config)
    return config


def slug(label: str) -> str:
    """A few letters of a label, fit for a name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in label.lower().encode("ascii", "ignore").decode())
    return "-".join(part for part in kept.split("-") if part)[:20].strip("-") or "data"


def keep_unpromoted(folder: RunFolder, model: Any) -> None:
    """Note a newly registered model (name, version, uri): its promotion is asked for once the run is closed, also after a kill."""
    write_atomically(folder.unpromoted, json.dumps(vars(model)))


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
