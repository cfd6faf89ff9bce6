"""Send a run to MLflow, from its journal, in the background: training neither waits for MLflow nor dies of it.

One logical run is one MLflow run: its id is kept in the run's folder, and a key of our own is looked for before one is created,
because a create whose answer was lost would otherwise be done twice. Points carry the journal's timestamps, so sending them
again after an unclear failure adds nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from pipelines.errors import StorageError
from pipelines.folder import RunFolder, write_atomically
from pipelines.tracking import journal, leaderboard, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_BATCH = 1000
_INTERVAL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_FLUSH_SECONDS = 60.0
_KEY, _FOLDER = "raylway.key", "raylway.folder"
_NOTHING: Mapping[str, float] = {}
_VIEW = {
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",  # its charts show ten runs otherwise
}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its own handlers would print to the screen; warnings go the usual way
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # 7 by default: one call to a server that is down would take 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def tracking_uri(root: Path, setting: str | None) -> str:
    """`track.uri`, else MLFLOW_TRACKING_URI, else a database in the storage folder."""
    return setting or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def check(uri: str) -> None:
    """Raises StorageError, before anything is launched, if nothing can be tracked at `uri`. Imports no mlflow."""
    scheme = urlsplit(uri).scheme
    shown = provenance.redact(uri)
    if scheme in ("http", "https"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
        except urllib.error.HTTPError:
            return  # it answers; whether it lets us in shows when the run is created
        except (OSError, ValueError) as error:
            raise StorageError(f"track.uri={shown}: no MLflow server answers ({getattr(error, 'reason', error)})") from error
    elif scheme.partition("+")[0] not in _DATABASES:
        raise StorageError(f"track.uri={shown}: not an MLflow address; write http://host:port or sqlite:///path/to/mlflow.db")


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


class Tracker:
    """Ships the journal of the run in `folder` to MLflow at `uri` from a thread of its own, from `start` to `close`.

    One below a `parent` has no thread: whoever has many of them calls `ship`, and the parent must have been shipped before.
    """

    def __init__(self, uri: str, folder: RunFolder, root: Path, about: About, parent: Tracker | None = None) -> None:
        self.uri, self.folder, self.about, self._root, self._parent = uri, folder, about, root, parent
        self._state = folder.path / "mlflow.json"
        self._client: MlflowClient | None = None
        self._run_id = self._experiment_id = self._key = ""
        self._offset = 0
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_stopped, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to send. Importing mlflow and making a database take seconds of CPU, so call it when nothing waits for them."""
        self._thread.start()

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def experiment_id(self) -> str:
        return self._experiment_id

    @property
    def opened(self) -> bool:
        """Whether MLflow knows the run."""
        return self._client is not None

    @property
    def run_url(self) -> str:
        """The run's page; for a database, where `raylway ui` shows it."""
        return self.url_of(self._run_id)

    def url_of(self, run_id: str) -> str:
        """The page of another run of the same experiment."""
        return f"{self._experiment_url}/runs/{run_id}?workflowType=machine_learning"

    def comparison(self, order_by: str, *, ascending: bool, columns: Sequence[str] = ()) -> str:
        """The page of all runs below this one, the best first; once the run is open, with `columns` (metrics.`a`, params.`b`) shown."""
        below = f'tags.`mlflow.parentRunId` = "{self._run_id}"'
        if self._client and columns:
            with contextlib.suppress(Exception):  # a view that is kept with the experiment: not documented, and but a convenience (3.17)
                view = _VIEW | {"searchFilter": below, "orderByKey": order_by, "orderByAsc": ascending, "selectedColumns": list(columns)}
                self._client.set_experiment_tag(self._experiment_id, f"mlflow.sharedViewState.{self._run_id}", json.dumps(view))
                return f"{self._experiment_url}/runs?workflowType=machine_learning&viewStateShareKey={self._run_id}"
        # nesting is off only where the list is sorted, and then children are shown (MLflow 3.17)
        query = {"workflowType": "machine_learning", "searchFilter": below, "orderByKey": order_by, "orderByAsc": str(ascending).lower()}
        return f"{self._experiment_url}/runs?{urlencode(query)}"

    @property
    def _experiment_url(self) -> str:
        server = provenance.redact(self.uri).rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self._experiment_id}"

    def ship(self) -> bool:
        """Open the run if need be and send what is new; False, with the cause kept, if MLflow failed."""
        try:
            client = self._client or self._open()
            while batch := self._next_batch():
                from mlflow.entities import Metric

                metrics = [Metric(name, value, point.time, point.step) for point, _ in batch for name, value in point.metrics.items()]
                client.log_batch(self._run_id, metrics=metrics)
                if any(point.texts for point, _ in batch):
                    self._send_texts(client)
                self._offset = batch[-1][1]
                self._remember()
        except Exception as error:  # whatever a server, a network or a database may throw must not end the training
            self._trouble = provenance.redact(str(error)).strip().partition("\n")[0]
            return False
        return True

    def flush(self, *, patience_seconds: float | None = None) -> None:
        """Send everything that is in the journal. Raises StorageError if MLflow cannot be reached for so long (a minute)."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        deadline = time.monotonic() + (_FLUSH_SECONDS if patience_seconds is None else patience_seconds)
        while not self.ship():
            if time.monotonic() > deadline:
                raise StorageError(f"MLflow at {provenance.redact(self.uri)} cannot be reached ({self._trouble}); nothing is lost: "
                                   f"the journal in {self.folder.path} is sent when the same command is run again")  # fmt: skip
            time.sleep(2)

    def close(
        self, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] = _NOTHING, *, patience_seconds: float | None = None
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED, after sending what is left. Raises StorageError as `flush` does."""
        self.flush(patience_seconds=patience_seconds)
        assert self._client
        from mlflow.entities import Metric, RunTag

        now = time.time_ns() // 1_000_000
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
            tags=[RunTag(name, provenance.redact(value)) for name, value in tags.items()],
        )
        self._client.set_terminated(self._run_id, status)
        headline = self.about.tags.get(leaderboard.HEADLINE)
        if status == "FINISHED" and headline and not self._parent:  # of many runs the parent's end is soon enough
            with contextlib.suppress(Exception):  # the run is done and kept; its experiment's description is only a summary of such
                leaderboard.update(self._client, self._experiment_id, headline)

    def log_figure(self, name: str, figure: Figure) -> None:
        assert self._client
        self._client.log_figure(self._run_id, figure, f"figures/{name}.png")

    def log_file(self, path: Path, folder: str) -> None:
        assert self._client
        self._client.log_artifact(self._run_id, str(path), folder)

    def log_folder(self, path: Path, folder: str) -> None:
        """All files of `path`."""
        assert self._client
        self._client.log_artifacts(self._run_id, str(path), folder)

    def describe(self, text: str) -> None:
        """The run's description, Markdown."""
        assert self._client
        self._client.set_tag(self._run_id, "mlflow.note.content", provenance.redact(text))

    def log_text(self, name: str, text: str) -> None:
        assert self._client
        self._client.log_text(self._run_id, provenance.redact(text), name)

    def _ship_until_stopped(self) -> None:
        pause = _INTERVAL_SECONDS
        while not self._stop.wait(pause):
            pause = _INTERVAL_SECONDS if self.ship() else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _send_texts(self, client: MlflowClient) -> None:
        """All texts of each name so far as one artifact, the newest first."""
        told: dict[str, list[str]] = {}
        for point in journal.read(self.folder.journal):
            for name, text in point.texts.items():
                told.setdefault(name, []).append(f"---- step {point.step:,}\n{text}\n")
        for name, texts in told.items():
            client.log_text(self._run_id, "\n".join(reversed(texts)), f"{name}.txt")

    def _next_batch(self) -> list[tuple[journal.Point, int]]:
        batch: list[tuple[journal.Point, int]] = []
        size = 0
        for point, end in journal.read_from(self.folder.journal, self._offset):
            if batch and size + len(point.metrics) > _BATCH:
                break
            batch.append((point, end))
            size += len(point.metrics)
        return batch

    def _open(self) -> MlflowClient:
        client = self._parent._client if self._parent else connect(self.uri)
        assert client
        if self._parent:
            self._experiment_id = self._parent._experiment_id
        else:
            self._experiment_id = _experiment(client, self.about.experiment, self._root if self.uri.startswith("sqlite") else None)
            _end_abandoned(client, self._experiment_id, self.folder)
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        if known.get("uri") == provenance.redact(self.uri):
            self._offset = known["offset"]
        self._key = known.get("key") or os.urandom(16).hex()
        self._run_id = self._find_or_create(client)
        client.update_run(self._run_id, status="RUNNING")
        self._describe(client)
        self._client = client
        return client

    def _remember(self) -> None:
        write_atomically(self._state, json.dumps({"key": self._key, "uri": provenance.redact(self.uri), "offset": self._offset}))

    def _find_or_create(self, client: MlflowClient) -> str:
        self._remember()  # before the run is created, so a create whose answer is lost is found the next time
        found = client.search_runs([self._experiment_id], f"tags.`{_KEY}` = '{self._key}'", max_results=1)
        if found:
            for name in {"cause", "exit_code"} & set(found[0].data.tags):  # why it stopped the last time
                client.delete_tag(found[0].info.run_id, name)
            return found[0].info.run_id
        self._offset = 0
        tags = {_KEY: self._key, _FOLDER: str(self.folder.path)}
        return client.create_run(
            self._experiment_id, start_time=int(1000 * self.about.began), tags=tags, run_name=self.about.name
        ).info.run_id

    def _describe(self, client: MlflowClient) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        about, commit = self.about, provenance.git_commit()
        tags = {"mlflow.user": user(), "mlflow.source.type": "LOCAL", "data.fingerprint": about.fingerprint} | dict(about.tags)
        tags |= {"mlflow.source.git.commit": commit} if commit else {}
        tags |= {"mlflow.parentRunId": self._parent.run_id} if self._parent else {}
        params = [Param(name, provenance.redact(str(value))) for name, value in about.params.items()]
        client.log_batch(self._run_id, params=params, tags=[RunTag(name, provenance.redact(text)) for name, text in tags.items()])
        dataset = Dataset(
            name=Path(about.source).name, digest=about.fingerprint, source_type="local", source=json.dumps({"uri": about.source})
        )
        client.log_inputs(self._run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        with tempfile.TemporaryDirectory(prefix="raylway-") as folder:  # all at once: each call asks MLflow where artifacts go
            (Path(folder) / "config.yaml").write_text(provenance.redact(about.config))
            (Path(folder) / "versions.json").write_text(json.dumps(provenance.versions(), indent=1))
            if diff := provenance.git_diff():
                (Path(folder) / "git.diff").write_text(diff)
            client.log_artifacts(self._run_id, folder)


def connect(uri: str) -> MlflowClient:
    """A client of `uri`, which also becomes the process's own, because the registry's calls look there (MLflow 3.17)."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    import mlflow

    theirs = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # writes the environment too, where the next run of this process would take it for the user's wish
    if theirs is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = theirs
    return mlflow.MlflowClient(uri)


def _experiment(client: MlflowClient, name: str, root: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    try:  # a database without a server would put artifacts into the current folder
        return client.create_experiment(name, artifact_location=(root / "artifacts" / name).as_uri() if root else None)
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _end_abandoned(client: MlflowClient, experiment_id: str, own: RunFolder) -> None:
    """Close as KILLED the runs whose driver was killed too hard to say so: they are RUNNING, but nobody holds their lock."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        folder = RunFolder(Path(run.data.tags.get(_FOLDER, "")))
        if not run.data.tags.get(_FOLDER) or folder == own or not folder.path.is_dir():
            continue
        try:
            with folder.locked("driver", wait_seconds=0):
                client.set_tag(run.info.run_id, "cause", "its process was killed outright")
                client.set_terminated(run.info.run_id, "KILLED")
        except (StorageError, OSError):
            continue


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
