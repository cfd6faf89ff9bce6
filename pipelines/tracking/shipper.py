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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines import run_record
from pipelines.errors import StorageError, TrackingError
from pipelines.process import in_background
from pipelines.run_record import RunFolder
from pipelines.run_states import CONCLUDED, ENDING, SENT, About, Ending, Sent
from pipelines.tracking import journal, pages, provenance
from pipelines.tracking.client import HEADLINE, connect, first_line, is_mlflows, run_page

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


class Tracker:
    """Sends the journal of the run in `folder` to MLflow at `uri` from a thread of its own, from `start` to `close`.

    One with a `parent` has no thread: the parent calls its `ship` after its own (sweep_tracker.py).
    """

    def __init__(self, uri: str, folder: RunFolder, root: Path, about: About, parent: Tracker | None = None) -> None:
        self.uri, self.folder, self.about, self._root, self._parent = uri, folder, about, root, parent
        self._sent = run_record.sent(folder)
        if self._sent.uri != provenance.redact(uri):
            self._sent = Sent(self._sent.key, provenance.redact(uri))
        self._client: MlflowClient | None = None
        self.run_id = self.experiment_id = ""
        self.trouble = ""
        """The last error of MLflow, in one line."""
        self.say: Callable[[str], None] = lambda text: None
        self._interval = _INTERVAL_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_stopped, name="mlflow", daemon=True)

    def start(self, say: Callable[[str], None] | None = None) -> None:
        """Begin to send, and `say` when that fails and when it works again.

        Importing mlflow and making a database take seconds of CPU, so call it when nothing waits for them.
        """
        self.say = say or self.say
        self._thread.start()

    @property
    def run_url(self) -> str:
        """The run's page; for a database, where `raylway ui` shows it."""
        return run_page(self.uri, self.experiment_id, self.run_id)

    def ship(self) -> bool:
        """Open the run if need be and send what is new; False, with `trouble` set, if MLflow failed."""
        try:
            client = self._client or self._open()
            while batch := self._next_batch():
                from mlflow.entities import Metric

                metrics = [Metric(name, value, point.time, point.step) for point, _ in batch for name, value in point.metrics.items()]
                client.log_batch(self.run_id, metrics=metrics)
                if any(point.texts for point, _ in batch):
                    self._send_texts(client)
                self._remember(replace(self._sent, offset=batch[-1][1]))
        except Exception as error:  # whatever a server, a network or a database may throw must not end the training
            self.trouble = first_line(error)
            return False
        return True

    def flush(self, *, patience_seconds: float | None = None) -> None:
        """Send everything that is in the journal. Raises TrackingError if MLflow cannot be reached for so long (a minute)."""
        self.insist(lambda: None, patience_seconds=patience_seconds)

    def insist(self, work: Callable[[], R], *, patience_seconds: float | None = None) -> R:
        """Send the journal, then call `work`, which talks to MLflow and may be repeated; returns its result.

        Raises TrackingError if MLflow fails for so long (a minute).
        """
        self._stop.set()
        patience = _FLUSH_SECONDS if patience_seconds is None else patience_seconds
        deadline = time.monotonic() + patience
        if self._thread.is_alive():
            self._thread.join(patience)  # a call to a server that hangs is under way
            if self._thread.is_alive():
                raise self._unreachable()
        while True:
            cause = None
            if self.ship():
                try:
                    return work()
                except Exception as error:
                    if not is_mlflows(error):
                        raise
                    self.trouble, cause = first_line(error), error
            if time.monotonic() > deadline:
                raise self._unreachable() from cause
            time.sleep(_AGAIN_SECONDS)

    def end(self, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] = _NOTHING) -> None:
        """Keep the end of the run in its folder, to be sent now or at any time."""
        self.folder.write(ENDING, Ending(status, tags, metrics))

    def close(
        self, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] = _NOTHING, *, patience_seconds: float | None = None
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED, after sending what is left. Raises TrackingError as `flush` does."""
        self.end(status, tags, metrics)
        self.insist(self.send_ending, patience_seconds=patience_seconds)

    def last_word(self, *, patience_seconds: float) -> None:
        """Send the end of the run, but wait only so long, whatever a server does. Raises TrackingError."""
        telling = in_background(lambda: self.insist(self.send_ending, patience_seconds=patience_seconds))
        try:
            telling.result(timeout=2 * patience_seconds)
        except TimeoutError:
            raise self._unreachable() from None

    def send_ending(self) -> None:
        """Send the end of the run that its folder keeps. Sent again, it adds nothing."""
        ending = self.folder.read(ENDING)
        assert self._client
        assert ending
        from mlflow.entities import Metric, RunTag

        self._client.log_batch(
            self.run_id,
            metrics=[Metric(name, value, ending.time, 0) for name, value in ending.metrics.items()],
            tags=[RunTag(name, provenance.redact(value)) for name, value in ending.tags.items()],
        )
        self._client.set_terminated(self.run_id, ending.status, end_time=ending.time)
        self._remember(replace(self._sent, closed=ending.status))
        headline = self.about.tags.get(HEADLINE)
        if ending.status == "FINISHED" and headline and not self._parent:  # of many runs the parent's end is soon enough
            with contextlib.suppress(Exception):  # the run is done and kept; its experiment's description is only a summary of such
                pages.update_board(self._client, self.experiment_id, headline)

    def send_page(self) -> None:
        """Send the figures, texts and scores of a run that is scored."""
        assert self._client
        if self.folder.page.is_dir():
            self._client.log_artifacts(self.run_id, str(self.folder.page))

    def _ship_until_stopped(self) -> None:
        pause, well = _INTERVAL_SECONDS, True
        while not self._stop.wait(pause):
            before, well = well, self.ship()
            if well and not before:
                self.say("MLflow can be reached again")
            elif before and not well:
                self.say(
                    f"MLflow at {self._sent.uri} cannot be reached ({self.trouble}); the run goes on, and its journal keeps everything"
                )
            pause = self._interval if well else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _unreachable(self) -> TrackingError:
        where = [] if self._root == Path("runs").resolve() else ["--storage", str(self._root)]
        sync = shlex.join(["raylway", "track", "--sync", str(self.folder.path.relative_to(self._root)), *where])
        return TrackingError(
            f"MLflow at {self._sent.uri} cannot be reached ({self.trouble or 'it does not answer'}); nothing is lost: what is "
            f"missing lies in {self.folder.path}, and is sent by the same command, or by\n{sync}"
        )

    def _send_texts(self, client: MlflowClient) -> None:
        """Send all texts of each name so far as one artifact, the newest first."""
        texts: dict[str, list[str]] = {}
        for point in journal.read(self.folder.journal):
            for name, text in point.texts.items():
                texts.setdefault(name, []).append(f"---- step {point.step:,}\n{text}\n")
        for name, parts in texts.items():
            client.log_text(self.run_id, "\n".join(reversed(parts)), f"{name}.txt")

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
            self.experiment_id = self._parent.experiment_id
        else:
            self.experiment_id = _experiment(client, self.about.experiment, self._root if self.uri.startswith("sqlite") else None)
            _end_abandoned(client, self.experiment_id, self.folder)
        self.run_id = self._find_or_create(client)
        client.update_run(self.run_id, status="RUNNING")
        self._describe(client)
        self._client = client
        return client

    @property
    def _origin(self) -> RunFolder:
        """The folder that keeps what made the run: the sweep's for a trial."""
        return self._parent.folder if self._parent else self.folder

    def _remember(self, sent: Sent) -> None:
        self._sent = sent
        self.folder.write(SENT, sent)

    def _find_or_create(self, client: MlflowClient) -> str:
        self._remember(replace(self._sent, closed=""))  # before it is created, so a create whose answer is lost is found the next time
        found = client.search_runs([self.experiment_id], f"tags.`{_KEY}` = '{self._sent.key}'", max_results=1)
        if found:
            for name in {"cause", "exit_code"} & set(found[0].data.tags):  # why it stopped the last time
                client.delete_tag(found[0].info.run_id, name)
            return found[0].info.run_id
        self._sent = replace(self._sent, offset=0)
        tags = {_KEY: self._sent.key, _FOLDER: str(self.folder.path)}
        return client.create_run(
            self.experiment_id, start_time=int(1000 * self.about.began), tags=tags, run_name=self.about.name
        ).info.run_id

    def _describe(self, client: MlflowClient) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        about, made_with = self.about, run_record.made_with(self._origin)
        tags = {"mlflow.user": provenance.user(), "mlflow.source.type": "LOCAL", "data.fingerprint": about.fingerprint} | dict(about.tags)
        tags |= {"mlflow.source.git.commit": made_with["commit"]} if made_with["commit"] else {}
        tags |= {"mlflow.parentRunId": self._parent.run_id} if self._parent else {}
        params = [Param(name, provenance.redact(str(value))) for name, value in about.params.items()]
        client.log_batch(self.run_id, params=params, tags=[RunTag(name, provenance.redact(text)) for name, text in tags.items()])
        dataset = Dataset(
            name=Path(about.source).name, digest=about.fingerprint, source_type="local", source=json.dumps({"uri": about.source})
        )
        client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        with tempfile.TemporaryDirectory(prefix="raylway-") as folder:  # all at once: each call asks MLflow where artifacts go
            (Path(folder) / "config.yaml").write_text(provenance.redact(about.config))
            (Path(folder) / "versions.json").write_text(json.dumps(made_with["versions"], indent=1))
            if made_with["diff"]:
                (Path(folder) / "git.diff").write_text(made_with["diff"])
            client.log_artifacts(self.run_id, folder)


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
