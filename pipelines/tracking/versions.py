"""Versions of registered models: found by number or alias, and their files fetched: weights and JSON, never the code beside them."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipelines.errors import RecipeError, StorageError
from pipelines.sealed import sha256
from pipelines.tracking import provenance
from pipelines.tracking.registry import Registered
from pipelines.tracking.runs import MISSING
from workloads import served

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PROMOTIONS = " (promotions)"
"""Behind a model's name: the log of its promotions, no model that one loads."""
_TAG_LETTERS = 5000
_INSIDE = "data/model"
_PACKAGE = "raylway_workloads_"


@dataclass(frozen=True)
class Version:
    """What the registry knows of a version of a model."""

    registered: Registered
    run_id: str
    model_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str

    @property
    def weights_sha256(self) -> str:
        """What was registered: a hash over every parameter and buffer (pipelines.training.checkpoint.weights_sha256)."""
        return self.tags.get("weights_sha256", "")

    @property
    def fingerprint(self) -> str:
        return self.tags.get("data.fingerprint", "")


@dataclass(frozen=True)
class Fetched:
    """The files of a version on this machine, their hashes compared."""

    model: Path
    """model.json: the workload's class, its settings, the encoding."""
    weights: Path
    code: str
    """The version of the `workloads` package that was registered with them."""


def find(client: MlflowClient, name: str, which: str) -> Version:
    """The version of `name` that `which` says: a number or an alias. Raises RecipeError, saying what there is."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, which) if which.isdigit() else client.get_model_version_by_alias(name, which)
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        raise RecipeError(unknown(client, name, which)) from None
    if not which.isdigit():  # asked by alias, MLflow gives a version without its aliases
        found = client.get_model_version(name, found.version)
    return _version(found)


def of_run(client: MlflowClient, run_id: str) -> Version | None:
    """The newest version that was registered from a run, if any was."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    there = [one for one in found if not one.name.endswith(PROMOTIONS)]
    newest = max(there, key=lambda one: int(one.version), default=None)
    return _version(client.get_model_version(newest.name, newest.version)) if newest else None


def names(client: MlflowClient) -> list[str]:
    """The registered models."""
    return sorted(model.name for model in client.search_registered_models() if not model.name.endswith(PROMOTIONS))


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def fetch(client: MlflowClient, version: Version, cache: Path) -> Fetched:
    """The version's weights and JSON on this machine; of a remote store, copies in the folder `cache`.

    Raises StorageError if the weights are not what was registered, RecipeError if it is no model of ours.
    """
    files = (f"{_INSIDE}/{served.MODEL}", f"{_INSIDE}/{served.WEIGHTS}", "MLmodel")
    model, weights, description = _local(client, version, files, cache / version.model_id)
    try:
        promised = json.loads(model.read_text())["weights_sha256"]
        loader = yaml.safe_load(description.read_text())["flavors"]["python_function"]["loader_module"]
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        raise StorageError(f"{version.registered.uri}: its {served.MODEL} or MLmodel is damaged") from None
    if sha256(weights) != promised:
        raise StorageError(f"{version.registered.uri}: {weights}: its content is not what was registered (sha256 differs)")
    return Fetched(model, weights, str(loader).partition(".")[0].removeprefix(_PACKAGE))


def has(client: MlflowClient, name: str, version: int) -> bool:
    return any(int(found.version) == version for found in client.search_model_versions(f"name = '{name}'"))


def mark(client: MlflowClient, name: str, version: int, *, tags: Mapping[str, str], description: str) -> None:
    """Write on a version's page."""
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, provenance.redact(value)[:_TAG_LETTERS])
    client.update_model_version(name, str(version), provenance.redact(description)[:_TAG_LETTERS])


def _local(client: MlflowClient, version: Version, files: tuple[str, ...], cache: Path) -> list[Path]:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    kept = [cache / name for name in files]
    if all(path.is_file() for path in kept):
        return kept
    partial = cache.with_name(f".{cache.name}.{uuid.uuid4().hex[:8]}")
    try:
        location = client.get_logged_model(version.model_id).artifact_location
        if location.startswith(("file:", "/")):
            return [Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{name}")) for name in files]
        for name in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{name}", dst_path=str((partial / name).parent))
        shutil.rmtree(cache, ignore_errors=True)
        os.replace(partial, cache)
    except (MlflowException, OSError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise StorageError(f"{version.registered.uri}: its files cannot be fetched: {cause}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return kept


def _version(found: ModelVersion) -> Version:
    source = found.source or ""
    if not source.startswith("models:/m-"):
        raise RecipeError(f"models:/{found.name}/{found.version}: was not registered by raylway, which alone can judge and load it")
    return Version(
        registered=Registered(found.name, int(found.version), f"models:/{found.name}/{found.version}"),
        run_id=found.run_id or "",
        model_id=source.removeprefix("models:/"),
        aliases=tuple(found.aliases),
        tags=dict(found.tags),
        description=found.description or "",
    )


def unknown(client: MlflowClient, name: str, which: str) -> str:
    """What to tell of a version or an alias that is not there: those that are."""
    there = names(client)
    if name not in there:
        return f"there is no registered model {name!r}; there are: {', '.join(there) or 'none'}"
    numbers = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    known = [*(f"@{alias} ({number})" for alias, number in aliases(client, name).items()), f"versions {', '.join(map(str, numbers))}"]
    what = f"version {which}" if which.isdigit() else f"alias @{which}"
    return f"models:/{name} has no {what}; it has: {'; '.join(known)}"
