"""Send a run to MLflow, from its journal, in the background: training neither waits for MLflow nor dies of it.

One logical run is one MLflow run: its id is kept in the run's folder, and a key of our own is looked for before one is created,
because a create whose answer was lost would otherwise be done twice. Points carry the journal's timestamps, so sending them
again after an unclear failure adds nothing.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from pipelines import run_record
from pipelines.errors import StorageError, TrackingError
from pipelines.process import in_background
from pipelines.run_record import RunFolder
from pipelines.run_states import CONCLUDED, ENDING, SENT, About, Ending, Sent
from pipelines.tracking import journal, pages, provenance
from pipelines.tracking.client import HEADLINE, connect, first_line, is_mlflows, run_page, server

if TYPE_CHECKING:
    from mlflow import MlflowClient

R = TypeVar("R")
_BATCH = 1000
_INTERVAL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 15.0
_FLUSH_SECONDS = 60.0
_AGAIN_SECONDS = 2.0
_KEY, _FOLDER = "raylway.key", "raylway.folder"
OUTRIGHT = "its process was killed outright"
_NOTHING: Mapping[str, float] = {}
_VIEW = {
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",  # its charts show ten runs otherwise
}


class Tracker:
    """Ships the journal of the run in `folder` to MLflow at `uri` from a thread of its own, from `start` to `close`.

    One below a `parent` has no thread: whoever has many of them calls `ship`, and the parent must have been shipped before.
    """

    def __init__(self, uri: str, folder: RunFolder, root: Path, about: About, parent: Tracker | None = None) -> None:
        self.uri, self.folder, self.about, self._root, self._parent = uri, folder, about, root, parent
        self._sent = run_record.sent(folder)
        if self._sent.uri != provenance.redact(uri):
            self._sent = Sent(self._sent.key, provenance.redact(uri))
        self._client: MlflowClient | None = None
        self._run_id = self._experiment_id = ""
        self.trouble, self._well = "", True
        self.say: Callable[[str], None] = lambda text: None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_stopped, name="mlflow", daemon=True)

    def start(self, say: Callable[[str], None] | None = None) -> None:
        """Begin to send, and `say` where that fails and when it works again.

        Importing mlflow and making a database take seconds of CPU, so call it when nothing waits for them.
        """
        self.say = say or self.say
        self._thread.start()

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def experiment_id(self) -> str:
        return self._experiment_id

    @property
    def run_url(self) -> str:
        """The run's page; for a database, where `raylway ui` shows it."""
        return run_page(self.uri, self._experiment_id, self._run_id)

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
        return f"{server(self.uri)}/#/experiments/{self._experiment_id}"

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
                self._remember(replace(self._sent, offset=batch[-1][1]))
        except Exception as error:  # whatever a server, a network or a database may throw must not end the training
            self.trouble = first_line(error)
            return False
        return True

    def flush(self, *, patience_seconds: float | None = None) -> None:
        """Send everything that is in the journal. Raises TrackingError if MLflow cannot be reached for so long (a minute)."""
        self._stop.set()
        patience = _FLUSH_SECONDS if patience_seconds is None else patience_seconds
        deadline = time.monotonic() + patience
        if self._thread.is_alive():
            self._thread.join(patience)  # a call to a server that hangs is under way
            if self._thread.is_alive():
                raise self.unreachable()
        while not self.ship():
            if time.monotonic() > deadline:
                raise self.unreachable()
            time.sleep(_AGAIN_SECONDS)

    def insist(self, work: Callable[[], R], *, patience_seconds: float | None = None) -> R:
        """What `work` gives, which talks to MLflow and can be done again, once the journal is sent.

        Raises TrackingError if MLflow fails for so long (a minute).
        """
        deadline = time.monotonic() + (_FLUSH_SECONDS if patience_seconds is None else patience_seconds)
        while True:
            self.flush(patience_seconds=max(0.0, deadline - time.monotonic()))
            try:
                return work()
            except Exception as error:
                if not is_mlflows(error):
                    raise
                self.trouble = first_line(error)
                if time.monotonic() > deadline:
                    raise self.unreachable() from error
            time.sleep(_AGAIN_SECONDS)

    def end(self, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] = _NOTHING) -> None:
        """Write down how the run ended, to be sent now or at any time."""
        self.folder.write(ENDING, Ending(status, tags, metrics))

    def close(
        self, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] = _NOTHING, *, patience_seconds: float | None = None
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED, after sending what is left. Raises TrackingError as `flush` does."""
        self.end(status, tags, metrics)
        self.insist(self.send_ending, patience_seconds=patience_seconds)

    def last_word(self, *, patience_seconds: float) -> None:
        """Tell MLflow how the run ended, but wait only so long, whatever a server does. Raises TrackingError."""
        telling = in_background(lambda: self.insist(self.send_ending, patience_seconds=patience_seconds))
        try:
            telling.result(timeout=2 * patience_seconds)
        except TimeoutError:
            raise self.unreachable() from None

    def send_ending(self) -> None:
        """Tell MLflow how the run ended, as it is written down. To be done again, it adds nothing."""
        ending = self.folder.read(ENDING)
        assert self._client
        assert ending
        from mlflow.entities import Metric, RunTag

        self._client.log_batch(
            self._run_id,
            metrics=[Metric(name, value, ending.time, 0) for name, value in ending.metrics.items()],
            tags=[RunTag(name, provenance.redact(value)) for name, value in ending.tags.items()],
        )
        self._client.set_terminated(self._run_id, ending.status, end_time=ending.time)
        self._remember(replace(self._sent, closed=ending.status))
        headline = self.about.tags.get(HEADLINE)
        if ending.status == "FINISHED" and headline and not self._parent:  # of many runs the parent's end is soon enough
            with contextlib.suppress(Exception):  # the run is done and kept; its experiment's description is only a summary of such
                pages.update_board(self._client, self._experiment_id, headline)

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        """All files of `path`, at the top of the run's artifacts or in a `folder` there."""
        assert self._client
        self._client.log_artifacts(self._run_id, str(path), folder)

    def describe(self, text: str) -> None:
        """The run's description, Markdown."""
        assert self._client
        self._client.set_tag(self._run_id, "mlflow.note.content", provenance.redact(text))

    def _ship_until_stopped(self) -> None:
        pause = _INTERVAL_SECONDS
        while not self._stop.wait(pause):
            well = self.ship()
            self.tell(well)
            pause = _INTERVAL_SECONDS if well else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def tell(self, well: bool) -> None:
        """Say that MLflow cannot be reached, or can be again, where that is news."""
        if well != self._well:
            away = f"MLflow at {self._sent.uri} cannot be reached ({self.trouble}); the run goes on, and its journal keeps everything"
            self.say("MLflow takes what it is sent again" if well else away)
        self._well = well

    def unreachable(self, cause: str = "") -> TrackingError:
        """What to tell where MLflow stays away."""
        return TrackingError(
            f"MLflow at {self._sent.uri} cannot be reached ({cause or self.trouble or 'it does not answer'}); nothing is lost: what is "
            f"missing lies in {self.folder.path}, and is sent by the same command, or by\n{_sync(self.folder, self._root)}"
        )

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
        for point, end in journal.read_from(self.folder.journal, self._sent.offset):
            if batch and size + len(point.metrics) > _BATCH:
                break
            batch.append((point, end))
            size += len(point.metrics)
        return batch

    def _open(self) -> MlflowClient:
        run_record.made_with(self._origin)  # of the code that trains, not of who sends it later
        client = self._parent._client if self._parent else connect(self.uri)
        assert client
        if self._parent:
            self._experiment_id = self._parent._experiment_id
        else:
            self._experiment_id = _experiment(client, self.about.experiment, self._root if self.uri.startswith("sqlite") else None)
            _end_abandoned(client, self._experiment_id, self.folder)
        self._run_id = self._find_or_create(client)
        client.update_run(self._run_id, status="RUNNING")
        self._describe(client)
        self._client = client
        return client

    @property
    def _origin(self) -> RunFolder:
        """Where it is written down what made the run: the trials of a sweep are made with what that is made with."""
        return self._parent.folder if self._parent else self.folder

    def _remember(self, sent: Sent) -> None:
        self._sent = sent
        self.folder.write(SENT, sent)

    def _find_or_create(self, client: MlflowClient) -> str:
        self._remember(replace(self._sent, closed=""))  # before it is created, so a create whose answer is lost is found the next time
        found = client.search_runs([self._experiment_id], f"tags.`{_KEY}` = '{self._sent.key}'", max_results=1)
        if found:
            for name in {"cause", "exit_code"} & set(found[0].data.tags):  # why it stopped the last time
                client.delete_tag(found[0].info.run_id, name)
            return found[0].info.run_id
        self._sent = replace(self._sent, offset=0)
        tags = {_KEY: self._sent.key, _FOLDER: str(self.folder.path)}
        return client.create_run(
            self._experiment_id, start_time=int(1000 * self.about.began), tags=tags, run_name=self.about.name
        ).info.run_id

    def _describe(self, client: MlflowClient) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        about, made_with = self.about, run_record.made_with(self._origin)
        tags = {"mlflow.user": provenance.user(), "mlflow.source.type": "LOCAL", "data.fingerprint": about.fingerprint} | dict(about.tags)
        tags |= {"mlflow.source.git.commit": made_with["commit"]} if made_with["commit"] else {}
        tags |= {"mlflow.parentRunId": self._parent.run_id} if self._parent else {}
        params = [Param(name, provenance.redact(str(value))) for name, value in about.params.items()]
        client.log_batch(self._run_id, params=params, tags=[RunTag(name, provenance.redact(text)) for name, text in tags.items()])
        dataset = Dataset(
            name=Path(about.source).name, digest=about.fingerprint, source_type="local", source=json.dumps({"uri": about.source})
        )
        client.log_inputs(self._run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        with tempfile.TemporaryDirectory(prefix="raylway-") as folder:  # all at once: each call asks MLflow where artifacts go
            (Path(folder) / "config.yaml").write_text(provenance.redact(about.config))
            (Path(folder) / "versions.json").write_text(json.dumps(made_with["versions"], indent=1))
            if made_with["diff"]:
                (Path(folder) / "git.diff").write_text(made_with["diff"])
            client.log_artifacts(self._run_id, folder)


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
                if folder.read(CONCLUDED) is None and folder.read(ENDING) is None:  # how those ended is known, and will be sent
                    client.set_tag(run.info.run_id, "cause", OUTRIGHT)
                    client.set_terminated(run.info.run_id, "KILLED")
        except (StorageError, OSError):
            continue


def _sync(folder: RunFolder, root: Path) -> str:
    """The command that sends what is left of a run."""
    where = [] if root == Path("runs").resolve() else ["--storage", str(root)]
    return shlex.join(["raylway", "track", "--sync", str(folder.path.relative_to(root)), *where])
