"""Runs as MLflow keeps them: found by id, by name or as the latest; their tags, parameters, scores and files."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import RecipeError, StorageError, TrackingError
from pipelines.run_record import RunFolder
from pipelines.tracking import provenance, trouble
from pipelines.tracking.shipper import check, connect
from workloads.base import DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a thing that is not there; the second for an alias (3.17)."""
_ID = re.compile(r"[0-9a-f]{32}")
_LISTED = 10


@dataclass(frozen=True)
class Kept:
    """What MLflow knows of a run."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    began: float
    """Seconds since 1970."""
    ended: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Name of the prepared data it was trained on; empty for a run that others made."""
        return self.tags.get("data.fingerprint", "")

    def folder(self, root: Path) -> RunFolder | None:
        """The run's folder, where this machine reaches it: where the run says it is, else in the storage `root`."""
        told = Path(self.tags.get("raylway.folder", ""))
        return next((RunFolder(path) for path in (told, root / told.parent.name / told.name) if (path / "config.yaml").is_file()), None)


@contextmanager
def asked(uri: str) -> Iterator[MlflowClient]:
    """A client of an MLflow that is there already. Raises StorageError where it is not, or while it cannot be reached."""
    check(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise StorageError(
            f"{uri.removeprefix('sqlite:///')}: no runs are kept there yet; storage=FOLDER or track.uri=URI says where they are"
        )
    try:
        yield connect(uri)
    except (RecipeError, StorageError, DataError):
        raise
    except Exception as error:
        if not trouble.is_mlflows(error):
            raise
        raise TrackingError(f"MLflow at {provenance.redact(uri)} cannot be used: {trouble.sentence(error)}") from error


def find(client: MlflowClient, called: str) -> Kept | None:
    """The run of an id, the newest of a name, or the newest finished one (`latest`); None if there is none."""
    from mlflow.exceptions import MlflowException

    if _ID.fullmatch(called):
        try:
            return _kept(client.get_run(called))
        except MlflowException as error:
            if error.error_code in MISSING:
                return None
            raise
    if called == "latest":
        trained = "attributes.status = 'FINISHED' and tags.stage = 'finished' and tags.weights_sha256 LIKE '%'"  # a sweep has no weights
        return next(iter(search(client, trained, most=1)), None)
    quoted = called.replace("'", "")
    return next(iter(search(client, f"attributes.run_name = '{quoted}'", most=1)), None)


def search(client: MlflowClient, where: str, *, most: int = 1000, experiments: Sequence[str] | None = None) -> list[Kept]:
    """The runs of all experiments (or these, by their ids) that MLflow's filter `where` lets through, the newest first."""
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(list(experiments), where, order_by=["attributes.start_time DESC"], max_results=most)
    return [_kept(run) for run in found]


def names(client: MlflowClient) -> list[str]:
    """The names of the newest runs."""
    return list(dict.fromkeys(run.name for run in search(client, "", most=_LISTED)))


def text(client: MlflowClient, run_id: str, name: str) -> str | None:
    """The content of a text artifact, or None if the run has none of that name."""
    with tempfile.TemporaryDirectory(prefix="raylway-") as scratch:
        file = artifact(client, run_id, name, Path(scratch))
        return file.read_text(encoding="utf-8", errors="replace") if file else None


def artifact(client: MlflowClient, run_id: str, name: str, into: Path) -> Path | None:
    """An artifact as a file in the folder `into`, or None if the run has none of that name."""
    if not any(file.path == name for file in client.list_artifacts(run_id, str(Path(name).parent) if "/" in name else None)):
        return None
    return Path(client.download_artifacts(run_id, name, str(into)))


def write(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Add scores (at step 0), tags, files (artifact path -> local file) and figures (artifact path -> matplotlib) to a run that is over."""
    from mlflow.entities import Metric, RunTag

    now = int(1000 * time.time())
    points = [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()]
    client.log_batch(run_id, metrics=points, tags=[RunTag(name, provenance.redact(value)) for name, value in (tags or {}).items()])
    for name, figure in (figures or {}).items():
        client.log_figure(run_id, figure, name)
    for name, file in (files or {}).items():
        client.log_artifact(run_id, str(file), str(Path(name).parent))


def url(client: MlflowClient, uri: str, run_id: str) -> str:
    """The run's page; for a database, where `raylway ui` shows it."""
    server = provenance.redact(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    experiment = client.get_run(run_id).info.experiment_id
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def _kept(run: MlflowRun) -> Kept:
    info, data = run.info, run.data
    times = info.start_time / 1000, info.end_time / 1000 if info.end_time else None
    return Kept(info.run_id, info.run_name, info.experiment_id, info.status, *times, data.params, data.metrics, data.tags)
