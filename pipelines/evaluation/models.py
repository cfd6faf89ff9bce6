"""Find a model by URI, name, run or folder, and load it without running anything that is stored with it.

Only JSON and safetensors are read; the network is built by this repository's `workloads`. The code that is stored with a registered model
is for users without this repository, and is never imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipelines import config
from pipelines.data import dataset
from pipelines.data.dataset import MANIFEST, Dataset
from pipelines.data.store import store_of
from pipelines.errors import RecipeError, StorageError
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import CONFIG, FINGERPRINT, IDENTITY, RESULT
from pipelines.tracking import facts, lookup, registry
from pipelines.tracking.client import tracking_uri
from pipelines.tracking.lookup import URI, Place
from pipelines.tracking.registry import Registered
from workloads.base import DataError, Encoding, Serving, Workload

if TYPE_CHECKING:
    from torch import nn

    from pipelines.tracking.lookup import MlflowClient, ModelVersion


_NETWORKS: dict[str, nn.Module] = {}
"""The network that was loaded last, by its weights' file and hash."""


@dataclass(frozen=True)
class Model:
    """A trained model, its weights on this machine."""

    called: str
    """The name that the user gave, for messages."""
    run: Run
    """The settings of its training with the overrides applied; storage and track.uri are those where it was found."""
    run_id: str
    """The MLflow run; empty where the run was never sent to MLflow."""
    folder: RunFolder | None
    """The run's folder, where it is reachable."""
    version: Registered | None
    workload: Workload
    encoding: Encoding
    weights: Path
    """A safetensors file, its sha256 compared with what was registered, or with the checkpoint's manifest."""
    weights_sha256: str
    """Hash of its parameters and buffers (checkpoint.weights_sha256); empty where none was recorded."""
    fingerprint: str
    """Of the prepared data it was trained on."""
    tracking_uri: str
    warnings: tuple[str, ...] = ()
    """Reasons to be careful with it, one sentence each."""

    @property
    def serving(self) -> Serving:
        """The model's input and output as a registered model and `raylway predict` use them."""
        return self.workload.serving(self.encoding)

    def network(self) -> nn.Module:
        """The network with its weights, in eval mode. Raises StorageError if they are not those that were registered."""
        from pipelines.training import checkpoint

        network = self.workload.network(self.encoding)
        try:
            checkpoint.load_weights(self.weights, network)
        except checkpoint.CheckpointError as error:
            raise StorageError(f"{self.called}: {error}") from None
        if self.weights_sha256 and checkpoint.weights_sha256(network) != self.weights_sha256:
            raise StorageError(f"{self.called}: {self.weights}: its content is not what was registered (weights_sha256 differs)")
        return network.eval()

    def loaded(self) -> tuple[nn.Module, str]:
        """The network and the device that it is on: a GPU if there is one. A process that asks several times loads it once."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        key = f"{self.weights} {self.weights_sha256}"
        if key not in _NETWORKS:
            _NETWORKS.clear()
            _NETWORKS[key] = self.network().to(device)
        return _NETWORKS[key], device


def find(called: str, overrides: Sequence[str] = (), *, alias: str = "champion") -> Model:
    """The model that `called` names: models:/name@alias, models:/name/3, a registered model's name (then its `alias`), a run's id or name,
    `latest` (the newest finished run), or a run's folder.

    `storage=` and `track.uri=` among the overrides say where to look, as in a recipe; the others are applied to the run's settings.
    Raises RecipeError for an unknown name, with the known ones, and StorageError for files that cannot be reached or are damaged.
    """
    place = lookup.place(overrides)
    for override in place.others:
        if override.partition(".")[0].partition("=")[0] in ("model", "workload"):
            key = override.partition("=")[0]
            raise RecipeError(f"{key}: a trained model keeps the settings of its network; train another to change them")
    if folder := _folder_of(called):
        return _of_folder(called, folder, place)
    with lookup.opened(place.uri) as client:
        if called.startswith(URI):
            return _of_version(client, called, lookup.version(client, *lookup.name_and_version(called, alias)), place)
        if tracked := lookup.find(client, called):
            version, folder = lookup.version_of_run(client, tracked.run_id), tracked.folder(place.root)
            if version:
                return _of_version(client, called, version, place)
            if folder is None:
                where = tracked.tags.get("raylway.folder", "(unknown)")
                raise StorageError(f"{called}: registered no model, and its folder {where} is not reachable")
            run = _settings(called, folder.read(CONFIG), place, folder, place.uri)
            return _of_checkpoint(called, run, tracked.run_id, folder, tracked.fingerprint, place.uri)
        registered = lookup.models(client)
        if called in registered:
            return _of_version(client, called, lookup.version(client, called, alias), place)
        names, newest = ", ".join(f"{URI}{name}" for name in registered), ", ".join(lookup.newest_names(client))
        unknown = f"{called}: no such run, folder or registered model"
        raise RecipeError(f"{unknown}; registered models: {names or 'none'}; newest runs: {newest or 'none'}")


def _of_version(client: MlflowClient, called: str, version: ModelVersion, place: Place) -> Model:
    registered, source = Registered(version.name, int(version.version), f"{URI}{version.name}/{version.version}"), version.source or ""
    if not source.startswith(f"{URI}m-"):
        raise RecipeError(f"{registered.uri}: was not registered by raylway, which loads only its own models")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "raylway" / "models"
    model, weights, code = registry.fetch(client, registered.uri, source.removeprefix(URI), cache)
    workload, encoding = _described(called, model)
    kept = lookup.find(client, version.run_id) if version.run_id else None
    if kept is None:
        raise StorageError(f"{called}: its run {version.run_id or '(none)'} is not in MLflow any more, so its settings are not known")
    folder = kept.folder(place.root)
    text = folder.read(CONFIG) if folder else facts.text(client, kept.run_id, "config.yaml")
    run = _settings(called, text, place, folder, place.uri)
    stale = f"{called}: was registered with other code of workloads/ than is here; it is run by the code that is here"
    return Model(
        called=called,
        run=run.model_copy(update={"model": workload}),
        run_id=kept.run_id,
        folder=folder,
        version=registered,
        workload=workload,
        encoding=encoding,
        weights=weights,
        weights_sha256=version.tags.get("weights_sha256", ""),
        fingerprint=version.tags.get("data.fingerprint") or kept.fingerprint,
        tracking_uri=place.uri,
        warnings=() if code == registry.code_version() else (stale,),
    )


def _of_folder(called: str, folder: RunFolder, place: Place) -> Model:
    run = _settings(called, folder.read(CONFIG), place, folder, place.stated.get("track.uri"))
    uri = tracking_uri(run.root, run.track.uri)
    fingerprint, result = folder.read(FINGERPRINT), folder.read(RESULT) or {}
    if fingerprint is None:
        missing = folder.path_of(FINGERPRINT)
        raise StorageError(f"{missing}: missing, so the data of the run are not known; name it by its MLflow run")
    found = _of_checkpoint(called, run, result.get("run_id", ""), folder, fingerprint, uri)
    return replace(found, version=Registered(**result["model"]) if result.get("model") else None)


def _of_checkpoint(called: str, run: Run, run_id: str, folder: RunFolder, fingerprint: str, uri: str) -> Model:
    """The newest checkpoint of a run's folder that verifies, with the encoding of the dataset that it was trained on."""
    from pipelines.training import checkpoint

    path, refused = checkpoint.newest(folder.checkpoints, folder.read(IDENTITY) or "")
    if path is None:
        raise StorageError(f"{called}: has no checkpoint that can be trusted" + "".join(f"\n{reason}" for reason in refused))
    store = store_of(run.data, run.root)
    try:
        if not store.has(fingerprint, MANIFEST):
            raise StorageError(f"{called}: the data it was trained on, {fingerprint}, are not in {store.place} any more; prepare them anew")
        manifest = Dataset.open(dataset.fetch(store, fingerprint)).manifest
    except DataError as error:
        raise StorageError(str(error)) from error
    warnings = [f"refused checkpoint {reason}" for reason in refused]
    if folder.read(RESULT) is None:
        warnings.append(f"{called}: its training is not finished; this is its checkpoint {path.name}")
    return Model(
        called=called,
        run=run,
        run_id=run_id,
        folder=folder,
        version=None,
        workload=run.model,
        encoding=run.model.encoding_type.model_validate(manifest.encoding),
        weights=checkpoint.weights_file(path),
        weights_sha256=checkpoint.promised_sha256(path),
        fingerprint=fingerprint,
        tracking_uri=uri,
        warnings=tuple(warnings),
    )


def _described(called: str, file: Path) -> tuple[Workload, Encoding]:
    """The workload and its encoding, by the classes of this repository that model.json names. Raises RecipeError, StorageError."""
    try:
        described = json.loads(file.read_text())
        kind = config.workload_class(str(described["class"]))
        return kind.model_validate(described["settings"]), kind.encoding_type.model_validate(described["encoding"])
    except RecipeError as error:
        raise RecipeError(f"{called}: {'; '.join(error.problems)}") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else type(error).__name__
        raise StorageError(f"{called}: {file}: is not what this repository's workloads/ can build: {reason}") from None


def _settings(called: str, text: str | None, place: Place, folder: RunFolder | None, uri: str | None) -> Run:
    """The settings in config.yaml, the overrides laid over.

    Their storage is the one that was asked for, else that of the run's folder (of a trial it lies deeper), else where the run was found.
    """
    if text is None:
        raise StorageError(f"{called}: its run has no config.yaml in MLflow, so it was not trained by raylway")
    home = place.root
    if folder and "storage" not in place.stated:
        above = folder.path.parents[1:3]
        home = next((place for place in above if (place / "mlflow.db").is_file() or (place / "datasets").is_dir()), above[0])
    run = config.trained_with(text, place.others)
    track = run.track.model_copy(update={"uri": uri}) if uri else run.track
    return run.model_copy(update={"storage": str(home), "track": track})


def _folder_of(called: str) -> RunFolder | None:
    """The run's folder that `called` is, if it is one."""
    if called.startswith(URI):
        return None
    try:
        path = Path(called).expanduser()
        return RunFolder(path.resolve()) if (path / "config.yaml").is_file() else None
    except (RuntimeError, ValueError, OSError):  # what can be no path may be a name
        return None
