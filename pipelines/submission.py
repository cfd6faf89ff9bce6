"""A command as a Ray job: its id, its entry point, and every reason why it cannot be one. Nothing is imported or asked that takes time.

The id comes from the command itself, so that the same command finds its job again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipelines import config
from pipelines.config import Loaded
from pipelines.data import files
from pipelines.errors import RecipeError
from pipelines.settings import Name
from pipelines.tracking.provenance import redact

VERBS = ("train", "sweep", "prepare", "evaluate", "predict", "promote", "reproduce", "verify")
"""Commands that can be a job."""
_RUNS = ("train", "sweep")
ENTRY = ("python", "-m", "pipelines")
_ROOMS = ("pipelines/__main__.py", "workloads", "cluster")
_TRACKING = "MLFLOW_TRACKING_URI"
_HTTP = ("http://", "https://")


@dataclass(frozen=True)
class Submission:
    """A command as a job."""

    id: str
    meaning: str
    """Hash of what it computes, not of where or on how many workers: two commands of one name must agree in it."""
    command: str
    """The job's entry point: an argument list, quoted for the cluster's shell."""
    folder: Path
    """The working directory, which is uploaded."""
    local: tuple[tuple[str, str], ...]
    """(setting, path) of the files that are named relative to `folder`."""
    environment: tuple[tuple[str, str], ...]
    as_json: bool
    """True if the last line of the job's log is its result (--json)."""
    lasting: bool
    """True if it makes a run, which stays; the answers of other commands change with the data that they look at."""


def address_of(given: str | None, environment: Mapping[str, str]) -> str:
    """The URL of the dashboard, which takes jobs: --address, or the environment's. Raises RecipeError."""
    for name, text in [
        ("--address", given),
        *((name, environment.get(name)) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")),
    ]:
        if not text:
            continue
        if text.startswith(_HTTP):
            return text.rstrip("/")
        raise RecipeError(f"{name}={text}: jobs are taken by the dashboard of the cluster's head; give --address http://HEAD:8265")
    raise RecipeError("submit: to which cluster? Give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")


def submission_of(
    verb: str, words: Sequence[str], given: Mapping[str, Any], *, folder: Path, name: str | None, environment: Mapping[str, str]
) -> Submission:
    """The job that `verb words…`, parsed to `given`, is in `folder`. Raises RecipeError with every reason why it cannot be one.

    Relative paths are those of `folder`, where the job will be.
    """
    resolved = folder.expanduser().resolve()
    if missing := [room for room in _ROOMS if not (resolved / room).exists()]:
        raise RecipeError(
            f"--working-dir {folder}: has no {missing[0]}; a job runs the program that lies in it, so give the folder of the repository"
        )
    with contextlib.chdir(resolved):
        overrides = [*(given.get("overrides") or []), *(f"sweep.space.{each}" for each in given.get("space") or [])]
        loaded = config.load(given["recipe"], overrides) if given.get("recipe") else None
        problems = [*_not_a_name(name), *_secrets(words, loaded, environment), *_vanishing(verb, given, loaded, environment)]
        if problems:
            raise RecipeError(*problems)
        plain = [verb, *(word for word in words if word != "--json")]  # without what only decides how the result is shown
        makes_run = verb in _RUNS
        meaning = _hash([verb, loaded.run.identity(loaded.run.data.model_dump_json())] if loaded and makes_run else plain)
    uri = environment.get(_TRACKING)
    return Submission(
        id=name or (loaded and makes_run and loaded.run.name) or _made_id(verb, plain, given, loaded, meaning),
        meaning=meaning,
        command=shlex.join([*ENTRY, verb, *words]),
        folder=resolved,
        local=tuple(_local(verb, given, loaded)),
        environment=((_TRACKING, uri),) if uri else (),
        as_json="--json" in words,
        lasting=makes_run,
    )


def check_sent(submission: Submission, sent: Mapping[str, int]) -> None:
    """Raises RecipeError if files that the command names are not among those uploaded, DataError if there are none of that name."""
    with contextlib.chdir(submission.folder):
        missing = [f"{setting} {text}: {why}" for setting, text in submission.local if (why := _left_out(text, submission.folder, sent))]
    if missing:
        raise RecipeError(*missing)


def _left_out(text: str, folder: Path, sent: Mapping[str, int]) -> str | None:
    """Why a job would not find what `text` names; None if it would."""
    instead = "name it by an absolute path or a URI that every node reaches"
    for file in files.find(text):
        place = Path(file.uri)
        if not place.is_relative_to(folder):
            return f"lies outside {folder}, so it does not go up; {instead}"
        if (name := str(place.relative_to(folder))) not in sent:
            return f"{name} is left out of what goes up, by .gitignore, .rayignore or --exclude; {instead}, or let it go up"
    return None


def _override(given: Mapping[str, Any], key: str) -> str | None:
    """The last value that overrides give to a setting, as text."""
    values = [text for name, _, text in (each.partition("=") for each in given.get("overrides") or []) if name == key]
    return values[-1] if values else None


def _not_a_name(name: str | None) -> Iterator[str]:
    if name is not None:
        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            yield f"--name: {error.errors()[0]['msg'].removeprefix('Value error, ')}"


def _secrets(words: Sequence[str], loaded: Loaded | None, environment: Mapping[str, str]) -> Iterator[str]:
    """Problems of passwords that everyone who sees the cluster's jobs could read."""
    readable = "holds what looks like a password; a job's command and environment can be read by all who see the dashboard"
    in_recipe = "the recipe holds what looks like a password, and goes up with the folder"
    settings = loaded.settings().items() if loaded else ()
    texts = [(word, readable) for word in words]
    texts += [(f"{key}={row['value']}", in_recipe) for key, row in settings if row["origin"] == "recipe"]
    texts += [(f"{_TRACKING}={environment.get(_TRACKING, '')}", readable)]
    for text, problem in texts:
        if (hidden := redact(text)) != text:
            instead = "; MLflow's belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the cluster's nodes"
            yield f"{hidden}: {problem}{instead * ('://' in hidden)}"


def _vanishing(verb: str, given: Mapping[str, Any], loaded: Loaded | None, environment: Mapping[str, str]) -> Iterator[str]:
    """Problems of outputs in the job's own working directory on the head node, which is deleted when the job is done."""
    gone = "would lie in the job's own folder on the head node, and go with it"
    storage = loaded.run.storage if loaded else _override(given, "storage") or "./runs"
    if not os.path.isabs(storage):
        yield f"storage={storage} {gone}; give a folder that every node reaches: storage=/shared/runs"
    prepared = loaded.run.data.prepared if loaded else _override(given, "data.prepared")
    if prepared and not _elsewhere_too(prepared):
        yield f"data.prepared={prepared} {gone}; give a folder that every node reaches, or a URI"
    if verb == "predict" and not _elsewhere_too(given["output"]):
        yield f"OUTPUT {given['output']} {gone}; give a path or a URI that every node reaches"
    tracked = loaded.run.track.uri if loaded else _override(given, "track.uri")
    for name, uri in (("track.uri", tracked), (_TRACKING, environment.get(_TRACKING))):
        if uri and re.match(r"sqlite:///[^/]", uri):
            yield f"{name}={uri} {gone}; give sqlite:////shared/… with four strokes, or the address of a server"


def _elsewhere_too(place: str) -> bool:
    """True if a path or URI means the same on every machine."""
    return os.path.isabs(place) or "://" in place


def _local(verb: str, given: Mapping[str, Any], loaded: Loaded | None) -> Iterator[tuple[str, str]]:
    """(setting, path) of the files that are named relative to the working directory, and of the program itself."""
    from pipelines.data.embedded import EMBEDDED

    keys = ("source", "train", "validation", "test")
    named = {f"data.{key}": getattr(loaded.run.data, key) if loaded else _override(given, f"data.{key}") for key in keys}
    if verb == "predict":
        named["INPUT"] = given["input_"]
    if str(given.get("recipe") or "").endswith((".yaml", ".yml")):
        named["recipe"] = given["recipe"]
    named["the program"] = _ROOMS[0]
    yield from ((key, text) for key, text in named.items() if text and text not in EMBEDDED and not _elsewhere_too(text))


def _made_id(verb: str, plain: list[str], given: Mapping[str, Any], loaded: Loaded | None, meaning: str) -> str:
    """An id for a command that has no name: the same for what would be the same run."""
    of = [meaning, loaded.run.storage, loaded.run.experiment, str(given.get("again"))] if loaded and verb == "train" else plain
    first = Path(given["recipe"]).stem if given.get("recipe") else str(given.get("model") or given.get("run") or "")
    label = re.sub(r"[^a-z0-9]+", "-", first.lower()).strip("-")[:30]
    return "-".join(part for part in (verb, label, _hash(of)[:8]) if part)


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
