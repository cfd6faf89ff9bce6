"""The state files in a run's folder: their values, their form on the disk, and what happens where one is damaged."""

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
    """The description of a run before it begins, for MLflow."""

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
    """Of each stage, and in `total`."""


@dataclass(frozen=True)
class Ending:
    """The end of a run: FINISHED, FAILED or KILLED, and the tags and metrics of its page; `time` in milliseconds since 1970."""

    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


@dataclass(frozen=True)
class Sent:
    """The state of a run in MLflow: it has the journal up to byte `offset`, and the end once `closed`."""

    key: str
    """The tag by which the MLflow run is found."""
    uri: str = ""
    """MLflow's address, without a password."""
    offset: int = 0
    closed: str = ""
    """FINISHED, FAILED or KILLED, once that is sent."""


@dataclass(frozen=True)
class State(Generic[T]):
    """A small text file that is read and written whole. A damaged one that `heals` counts as missing, because it can be made anew."""

    name: str
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


CONFIG = State("config.yaml", _text(".+"), provenance.redact)
"""The settings; the next command writes them again."""
IDENTITY = State("identity", _text("[0-9a-f]{64}"), str, heals=False)
"""Hash of the settings and data that decide the weights; a name cannot be used for two of them."""
FINGERPRINT = State("fingerprint", _text(".+"), str)
"""Name of the prepared dataset that the run is trained on; the next command writes it again."""
ABOUT = State("about.json", lambda text: About(**_object(text)), _about_text, heals=False)
MADE_WITH = State("made_with.json", _object, json.dumps)
"""{"commit", "versions", "diff"} of the code that made the run; a damaged one becomes that of the code that is here."""
COST = State("cost.json", lambda text: Cost(**_object(text)), lambda cost: json.dumps(asdict(cost)))
"""The cost of all attempts at the run so far; a damaged one begins at zero."""
CONCLUDED: State[Concluded] = State("concluded.json", lambda text: Concluded(**_object(text)), lambda done: json.dumps(asdict(done)))
"""Exists from when all is computed until MLflow has all of it; computed again from the last checkpoint."""
ENDING: State[Ending] = State(
    "ending.json", lambda text: Ending(**_object(text)), lambda ending: json.dumps(asdict(ending) | {"tags": _redacted(ending.tags)})
)
"""Written at the end of each attempt."""
SENT = State("mlflow.json", lambda text: Sent(**_object(text)), lambda sent: json.dumps(asdict(sent)), heals=False)
RESULT: State[dict[str, Any]] = State("result.json", _object, lambda result: json.dumps(result, indent=1))
"""The JSON of `raylway train` or `raylway sweep`, written when all is done; computed again from the last checkpoint."""
UNPROMOTED: State[dict[str, Any]] = State("unpromoted.json", _object, json.dumps)
"""A newly registered model (name, version, uri), until the command has asked for its promotion."""
