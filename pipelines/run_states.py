"""The things in a run's folder: the plain values of its state files, their form on the disk, and from what each can be made anew."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.tracking import provenance

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What is known of a run before it begins, for MLflow."""

    name: str
    experiment: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    source: str
    fingerprint: str
    config: str
    began: float
    command: Sequence[str] = ()
    """The command that resumes it, as a list of arguments."""


@dataclass(frozen=True)
class Cost:
    """Seconds of the command, and hours of the CPUs and GPUs that its workers held meanwhile, used or not."""

    seconds: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_hours + other.cpu_hours, self.gpu_hours + other.gpu_hours)

    def metrics(self) -> dict[str, float]:
        """The cost under MLflow's names."""
        return {f"cost/{name}": value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Concluded:
    """The outcome of a training that is scored, in plain values."""

    what: str
    """The run in one line."""
    metrics: Mapping[str, float]
    steps: int
    resumed_from_step: int
    checkpoint: str
    weights_sha256: str
    samples_per_second: float | None
    workers: int
    """Workers at the end; 0: the process of the command."""
    tags: Mapping[str, str]
    facts: list[str]
    """Lines of its page."""
    seconds: Mapping[str, float]
    """Of each stage, and `total` until now."""


@dataclass(frozen=True)
class Ending:
    """The end of a run: FINISHED, FAILED or KILLED, and what its page says then; `time` in milliseconds since 1970."""

    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


@dataclass(frozen=True)
class Sent:
    """What MLflow has of a run: the journal up to byte `offset`, and its end once `closed`."""

    key: str
    """The tag by which the MLflow run is found."""
    uri: str = ""
    """MLflow's address, without a password."""
    offset: int = 0
    closed: str = ""
    """FINISHED, FAILED or KILLED, once MLflow was told so."""


@dataclass(frozen=True)
class Part:
    """A file or folder of the record, and from what it can be made anew; None: from nothing, so it is protected."""

    name: str
    made_from: str | None


@dataclass(frozen=True)
class State(Part, Generic[T]):
    """A small text file that is read and written whole. A damaged one that `heals` counts as missing."""

    decode: Callable[[str], T]
    encode: Callable[[T], str]
    heals: bool = True


def _text(pattern: str) -> Callable[[str], str]:
    def decode(text: str) -> str:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(f"its content is {text[:40]!r}")
        return text

    return decode


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _redacted(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: provenance.redact(str(value)) for name, value in values.items()}


def _about_text(about: About) -> str:
    plain = {"params": _redacted(about.params), "tags": _redacted(about.tags), "config": ""}  # its settings are in config.yaml
    plain |= {"command": [provenance.redact(word) for word in about.command], "source": provenance.redact(about.source)}
    return json.dumps(asdict(about) | plain)


CONFIG = State("config.yaml", "the settings of the command", _text(".+"), provenance.redact)
IDENTITY = State("identity", "settings and data, where the folder is named by them", _text("[0-9a-f]{64}"), str, heals=False)
"""Hash of the settings and data that decide the weights; a name cannot be used for two of them."""
FINGERPRINT = State("fingerprint", "the plan of the data", _text(".+"), str)
"""Name of the prepared dataset that the run is trained on."""
ABOUT = State("about.json", "the settings of the command", lambda text: About(**_object(text)), _about_text, heals=False)
MADE_WITH = State("made_with.json", "the code that is here", _object, json.dumps)
"""{"commit", "versions", "diff"} of the code that made the run."""
COST = State("cost.json", "nothing: it counts from now on", lambda text: Cost(**_object(text)), lambda cost: json.dumps(asdict(cost)))
"""The cost of all attempts at the run so far."""
CONCLUDED: State[Concluded] = State(
    "concluded.json", "the last checkpoint", lambda text: Concluded(**_object(text)), lambda done: json.dumps(asdict(done))
)
"""Stands from when all is computed until MLflow has all of it."""
ENDING: State[Ending] = State(
    "ending.json",
    "the end of the next attempt",
    lambda text: Ending(**_object(text)),
    lambda ending: json.dumps(asdict(ending) | {"tags": _redacted(ending.tags)}),
)
SENT = State("mlflow.json", "MLflow", lambda text: Sent(**_object(text)), lambda sent: json.dumps(asdict(sent)), heals=False)
RESULT: State[dict[str, Any]] = State("result.json", "the last checkpoint", _object, lambda result: json.dumps(result, indent=1))
"""The JSON of `raylway train` or `raylway sweep`, written when all is done."""
UNPROMOTED: State[dict[str, Any]] = State("unpromoted.json", "the registry", _object, json.dumps)
"""A newly registered model (name, version, uri), until the command has asked for its promotion."""
STATES: tuple[State[Any], ...] = (
    *(CONFIG, IDENTITY, FINGERPRINT, ABOUT, MADE_WITH, COST),
    *(CONCLUDED, ENDING, SENT, RESULT, UNPROMOTED),
)
RECORD: tuple[Part, ...] = (
    *STATES,
    Part("journal.jsonl", None),
    Part("checkpoints", None),
    Part("ledger.jsonl", None),
    Part("page", "the last checkpoint and the data"),
    Part("run.log", "nothing: it only informs"),
    *(Part(mark, "the driver's next request") for mark in (".abandoned", ".pause", ".stop")),
    *(Part(lock, "the next process that takes it") for lock in (".driver.lock", ".writer.lock")),
    Part(".ray", "Ray's next launch"),
)
