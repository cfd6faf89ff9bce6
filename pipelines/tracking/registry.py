"""Register a trained model so that it can be loaded anywhere: raw input in, labels out, without this repository.

What is registered is data, never pickles: weights as safetensors, settings and encoding as JSON, and the `workloads` package under a
name made of its own content. MLflow puts that name on the path, so models made by different code load side by side in one process,
which MLflow's `code_paths` alone gets wrong: the second model would run the first one's modules (MLflow 3.17).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.errors import StorageError
from pipelines.sealed import sha256
from pipelines.tracking import provenance
from pipelines.tracking.client import connect
from workloads import base, served
from workloads.base import Arrays, Encoding, Workload

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

_PACKAGE = "raylway_workloads_"
"""Prefix of the package that is stored with a model; the version of its code follows."""
_INSIDE = "data/model"
_TAG_LETTERS = 5000
_REQUIRED = ("torch", "numpy", "pandas", "pydantic", "safetensors")


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: int
    uri: str


@dataclass(frozen=True)
class Trained:
    """A trained model: all that a registered one is made of."""

    workload: Workload
    encoding: Encoding
    weights: Path
    """A safetensors file."""
    sample: Arrays
    """A few raw rows, from which the input example is made."""


def register(uri: str, trained: Trained, *, run_id: str, name: str, tags: Mapping[str, str], description: str = "") -> Registered:
    """Log the model to the run and register it as `name`, alias `candidate`; the alias `champion` is moved by promotions.py.

    Registering the same run twice returns the version that exists.
    """
    client = connect(uri)
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    version = max((int(each.version) for each in found), default=None)
    if version is None:
        import mlflow

        with tempfile.TemporaryDirectory(prefix="raylway-") as scratch:
            model_id = _log(client, Path(scratch), run_id, trained)
        version = int(mlflow.register_model(f"models:/{model_id}", name, tags=dict(tags)).version)
        if description:  # until `raylway promote` writes its verdict there
            client.update_model_version(name, str(version), provenance.redact(description))
    client.set_registered_model_alias(name, "candidate", str(version))
    return Registered(name, version, f"models:/{name}/{version}")


def fetch(client: MlflowClient, uri: str, model_id: str, cache: Path) -> tuple[Path, Path, str]:
    """(model.json, weights, version of the `workloads` package) of a registered version, with the weights' hash compared.

    The files are on this machine; those of a remote store are copied into the folder `cache`. Raises StorageError if the weights are not
    what was registered.
    """
    files = (f"{_INSIDE}/{served.MODEL}", f"{_INSIDE}/{served.WEIGHTS}", "MLmodel")
    model, weights, description = _local(client, uri, model_id, files, cache / model_id)
    try:
        promised = json.loads(model.read_text())["weights_sha256"]
        loader = yaml.safe_load(description.read_text())["flavors"]["python_function"]["loader_module"]
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        raise StorageError(f"{uri}: its {served.MODEL} or MLmodel is damaged") from None
    if sha256(weights) != promised:
        raise StorageError(f"{uri}: {weights}: its content is not what was registered (sha256 differs)")
    return model, weights, str(loader).partition(".")[0].removeprefix(_PACKAGE)


def mark(client: MlflowClient, name: str, version: int, *, tags: Mapping[str, str], description: str) -> None:
    """Write on a version's page."""
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, provenance.redact(value)[:_TAG_LETTERS])
    client.update_model_version(name, str(version), provenance.redact(description)[:_TAG_LETTERS])


def _log(client: MlflowClient, scratch: Path, run_id: str, trained: Trained) -> str:
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput

    workload = trained.workload
    model, package = scratch / "model", scratch / f"{_PACKAGE}{code_version()}"
    model.mkdir()
    shutil.copyfile(trained.weights, model / served.WEIGHTS)
    (model / served.MODEL).write_text(json.dumps(served.describe(workload, trained.encoding, sha256(trained.weights)), indent=1))
    shutil.copytree(_source(), package, ignore=shutil.ignore_patterns("__pycache__", "recipes", "examples"))
    example = workload.serving(trained.encoding).example(trained.sample)
    answer = served._load_pyfunc(str(model)).predict(example)
    # inferring them would start a process and take 4 s
    requirements = [f"{package}=={importlib.metadata.version(package).partition('+')[0]}" for package in (*_REQUIRED, *workload.requires)]
    # named experiment: the model's files go where that keeps them, and not into ./mlruns of the current folder (MLflow 3.17)
    logged = client.create_logged_model(client.get_run(run_id).info.experiment_id, name="model", source_run_id=run_id)
    mlflow.pyfunc.log_model(
        name="model",
        model_id=logged.model_id,
        loader_module=f"{package.name}.served",
        data_path=str(model),
        code_paths=[str(package)],
        signature=_signature(example, answer),
        input_example=example,
        pip_requirements=requirements,
    )
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        del sys.modules[name]  # MLflow imported it from `scratch`, which goes; loading the model here must find it in the model
    return logged.model_id


def _signature(example: Any, answer: Any) -> ModelSignature:
    """MLflow's description of input and output. A table's numbers may be of any type there: MLflow would refuse whole ones for a column
    of fractions (3.17), and what they must be is for the workload to say."""
    import pandas as pd
    from mlflow.models import infer_signature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    signature = infer_signature(example, answer)
    if isinstance(example, pd.DataFrame):
        numeric = set(example.select_dtypes("number"))
        columns = zip(signature.inputs.inputs, example.columns, strict=True)
        signature.inputs = Schema([ColSpec(AnyType(), name) if name in numeric else column for column, name in columns])
    return signature


def code_version() -> str:
    """A short hash of all Python files of `workloads`: the name under which the package travels."""
    digest = hashlib.sha256()
    for path in sorted(_source().rglob("*.py")):
        digest.update(f"{path.relative_to(_source())}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _source() -> Path:
    return Path(base.__file__).parent


def _local(client: MlflowClient, uri: str, model_id: str, files: tuple[str, ...], cache: Path) -> list[Path]:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    kept = [cache / name for name in files]
    if all(path.is_file() for path in kept):
        return kept
    partial = cache.with_name(f".{cache.name}.{uuid.uuid4().hex[:8]}")
    try:
        location = client.get_logged_model(model_id).artifact_location
        if location.startswith(("file:", "/")):
            return [Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{name}")) for name in files]
        for name in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{name}", dst_path=str((partial / name).parent))
        shutil.rmtree(cache, ignore_errors=True)
        os.replace(partial, cache)
    except (MlflowException, OSError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise StorageError(f"{uri}: its files cannot be fetched: {cause}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return kept
