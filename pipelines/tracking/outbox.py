"""What MLflow is to be told of a run, as it lies in the run's folder: who the run is, what it was made with, how it ended.

It is written before it is sent. So whoever has the folder can send what is missing, however the process that trained ended, and whatever
the server did meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import StorageError
from pipelines.run_record import RunFolder, write_atomically
from pipelines.tracking import journal, provenance

_NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True)
class About:
    """What is known of a run before it begins."""

    name: str
    experiment: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    source: str
    fingerprint: str
    config: str
    began: float
    command: Sequence[str] = ()
    """What goes on with it, as a list of arguments."""


@dataclass(frozen=True)
class Ending:
    """How a run ended: FINISHED, FAILED or KILLED, and what its page says then; `time` in milliseconds since 1970."""

    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


@dataclass(frozen=True)
class Sent:
    """How far MLflow has been told: up to which byte of the journal, and whether it knows the end."""

    key: str
    """What the MLflow run is found by."""
    uri: str = ""
    """Where it was sent, without a password."""
    offset: int = 0
    closed: str = ""
    """FINISHED, FAILED or KILLED, once MLflow was told so."""


def keep_about(folder: RunFolder, about: About) -> None:
    """Write down who the run is, at the start of each go at it; how the last one ended does not count any more, unless all was computed."""
    told = asdict(about) | {
        "params": _clean(about.params),
        "tags": _clean(about.tags),
        "command": [provenance.redact(word) for word in about.command],
    }
    write_atomically(
        folder.about, json.dumps(told | {"config": "", "source": provenance.redact(about.source)})
    )  # its settings are in config.yaml
    if not folder.concluded.exists():
        folder.ending.unlink(missing_ok=True)


def about(folder: RunFolder) -> About:
    """Who the run in `folder` is. Raises StorageError where that was not written down, or is damaged."""
    try:
        told = json.loads(folder.about.read_text())
        config = folder.config.read_text() if folder.config.exists() else ""
        return About(**told | {"config": config})
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(f"{folder.about}: does not say what run this is: {error}") from None


def keep_ending(folder: RunFolder, ending: Ending) -> None:
    write_atomically(folder.ending, json.dumps(asdict(ending) | {"tags": _clean(ending.tags)}))


def ending(folder: RunFolder) -> Ending | None:
    """How the run ended, or None where nobody could say so."""
    return Ending(**_read(folder.ending)) if folder.ending.exists() else None


def keep_sent(folder: RunFolder, sent: Sent) -> None:
    write_atomically(folder.sent, json.dumps(asdict(sent)))


def sent(folder: RunFolder) -> Sent:
    """How far MLflow has been told; of a run that it was never told of, a new key."""
    return Sent(**_read(folder.sent)) if folder.sent.exists() else Sent(os.urandom(16).hex())


def made_with(folder: RunFolder) -> dict[str, Any]:
    """{"commit", "versions", "diff"} of the code that made the run: what they are now, if this was not written down before."""
    if not folder.made_with.exists():
        told = {"commit": provenance.git_commit() or "", "versions": provenance.versions(), "diff": provenance.git_diff() or ""}
        write_atomically(folder.made_with, json.dumps(told))
    return _read(folder.made_with)


def points(folder: RunFolder) -> tuple[int, int]:
    """(values in the journal, those of them that MLflow has not been sent)."""
    offset = sent(folder).offset
    ends = [(len(point.metrics), end) for point, end in journal.read_from(folder.journal, 0)]
    return sum(values for values, _ in ends), sum(values for values, end in ends if end > offset)


def _clean(told: Mapping[str, Any]) -> dict[str, str]:
    return {name: provenance.redact(str(value)) for name, value in told.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: damaged: {error}") from None
