"""Train: prepare the data, train on a worker group, then conclude; each stage is taken up where it stopped.

Starting is the dear part of a small run, so what can go side by side does: Ray starts while torch is imported, the workers start
while the data are prepared and MLflow opens its database.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from cluster import session as cluster_session
from cluster import shards, workers
from cluster.session import Session
from pipelines import conclude
from pipelines import prepare as preparing
from pipelines.config import Loaded
from pipelines.data import prepared
from pipelines.data.prepared import Dataset
from pipelines.errors import StorageError, code_of
from pipelines.folder import RunFolder, check_writable, write_atomically
from pipelines.prepare import Plan
from pipelines.screen import Screen
from pipelines.settings import Run
from pipelines.supervision import supervised
from pipelines.threads import in_background
from pipelines.tracking import mlflow, provenance
from pipelines.training.job import Job

R = TypeVar("R")
_LAST_WORD_SECONDS = 3.0
_UNTRACKED = (
    "scale.",
    "track.",
    "sweep.",
    "promote.",
    "storage",
    "name",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep",
)


def train(loaded: Loaded, *, again: bool = False, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Train what `loaded` describes and give back the result (DESIGN §7). A finished run is not trained twice, unless `again`.

    Raises the errors of pipelines.errors; the MLflow run is closed as FAILED or KILLED before.
    """
    began = began or time.time()
    run = loaded.run
    check_writable(run.root)
    uri = mlflow.tracking_uri(run.root, run.track.uri)
    mlflow.check(uri)
    if not cluster_session.address():  # what this machine has is known, so what it can never do is said before anything starts
        workers.share(cluster_session.local_resources(), workers=run.scale.workers, cpus=run.scale.cpus, gpus=run.scale.gpus)
    plan = preparing.plan(run)
    folder = _folder(run, plan, again=again)
    if folder.result.exists():
        return conclude.finished_before(folder, screen)
    with folder.locked("driver", wait_seconds=5):
        folder.abandoned.unlink(missing_ok=True)
        config = write_config(run, folder)
        write_atomically(folder.fingerprint, plan.fingerprint)
        screen.say(f"{folder.path.name}: {conclude.what(run)}; log: {folder.log}")
        tracker = mlflow.Tracker(uri, folder, run.root, about(loaded, plan, folder, config, began))
        try:
            dataset, outcome, prepare_seconds = (_here if run.scale.workers == 0 else _on_ray)(run, plan, tracker, screen)
            with screen.captured(folder.log):
                return conclude.conclude(
                    run, plan, tracker, screen, dataset=dataset, outcome=outcome, prepare_seconds=prepare_seconds, began=began
                )
        except KeyboardInterrupt:
            _close(tracker, "KILLED", {"stage": "interrupted"}, screen)
            raise
        except Exception as error:
            _close(tracker, "FAILED", {"stage": "failed", "cause": str(error)[:500], "exit_code": str(code_of(error))}, screen)
            raise


def _here(run: Run, plan: Plan, tracker: mlflow.Tracker, screen: Screen) -> tuple[Dataset, Any, float]:
    """Train in this process, Ray never imported: prints, breakpoints and tracebacks are those of any script."""
    from pipelines.training.worker import work

    tracker.start()
    dataset, seconds = _timed(lambda: preparing.prepare(run, plan, preparing.in_process))
    preparing.tell(dataset, screen.say)
    threads = run.scale.threads or run.scale.cpus or cluster_session.local_resources().cpus
    job = Job(run, tracker.folder, plan.store, plan.fingerprint, tracker.folder.identity.read_text(), threads)
    with screen.progress(tracker.folder.journal, run.model.headline.metric) as progress:
        progress.expect(run.steps(preparing.examples(run, dataset)["train"]), run.train.batch)
        return dataset, workers.run_here(work, job, gpus=run.scale.gpus), seconds


def _on_ray(run: Run, plan: Plan, tracker: mlflow.Tracker, screen: Screen) -> tuple[Dataset, Any, float]:
    folder = tracker.folder
    with (
        screen.captured(folder.log),
        cluster_session.connect() as session,
        screen.progress(folder.journal, run.model.headline.metric) as progress,
    ):
        workers.preload()
        make = functools.partial(preparing.prepare, run, plan, shards.each)
        made = None
        # a stream needs the encoding first; and on a cluster of others the workers would hold the CPUs that preparing waits for
        if run.data.mode == "stream" or not session.local:
            session.ready()
            made = _timed(make)
        training = in_background(lambda: _supervise(run, plan, folder, session, screen))
        try:
            session.ready()
            tracker.start()
            dataset, seconds = made or _timed(make)
            preparing.tell(dataset, screen.say)
            progress.expect(run.steps(preparing.examples(run, dataset)["train"]), run.train.batch)
            return dataset, training.result(), seconds
        except BaseException:
            folder.abandoned.touch()
            raise


def _supervise(run: Run, plan: Plan, folder: RunFolder, session: Session, screen: Screen) -> Any:
    from pipelines.training.worker import guarded_work

    streaming = run.data.mode == "stream"
    spare = int(streaming and not session.local)  # if workers hold all CPUs, readers and workers wait for each other for ever
    there = session.resources()
    cpus, gpus = workers.share(there, workers=run.scale.workers, cpus=run.scale.cpus, gpus=run.scale.gpus, spare=spare)
    job = Job(run, folder, plan.store, plan.fingerprint, folder.identity.read_text(), run.scale.threads or cpus)
    stream = _stream(run, plan, screen) if streaming else None

    def launch() -> Any:
        return workers.launch(
            guarded_work, job, workers=run.scale.workers, cpus=cpus, gpus=gpus, scratch=folder.path / ".ray", stream=stream
        )

    return supervised(launch, folder, retries=run.scale.retries, say=screen.say)


def write_config(run: Run, folder: RunFolder) -> str:
    """Keep the whole settings of a run in its folder; their text."""
    config = provenance.redact(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
    write_atomically(folder.config, config)
    return config


def _stream(run: Run, plan: Plan, screen: Screen) -> Any:
    """The training rows as a stream."""
    screen.say("data.mode=stream: training rows come in no promised order; a resumed run goes on with other rows than it would have had")
    read, pieces = preparing.streamed(run, plan, prepared.proven(plan.store, plan.fingerprint))
    return shards.stream(read, pieces)


def _folder(run: Run, plan: Plan, *, again: bool) -> RunFolder:
    """The run's folder; `again` gives a new one."""
    identity = run.identity(plan.fingerprint)
    stem = run.name or f"{run.recipe}-{slug(plan.source.label)}-{identity[:8]}"
    parent, number = run.root / run.experiment, 1
    while again and (parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return claimed(run, stem if number == 1 else f"{stem}-{number}", identity)


def claimed(run: Run, name: str, identity: str) -> RunFolder:
    """The folder of that name, made if need be. A name means one thing only. Raises StorageError if it is another's."""
    folder = RunFolder(run.root / run.experiment / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.identity.exists() and folder.identity.read_text() != identity:
        raise StorageError(f"name={run.name} is taken by a run with other settings or data: {folder.config}; choose another name")
    write_atomically(folder.identity, identity)
    return folder


def slug(label: str) -> str:
    """A few letters of a label, fit for a name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in label.lower().encode("ascii", "ignore").decode())
    return "-".join(part for part in kept.split("-") if part)[:20].strip("-") or "data"


def about(loaded: Loaded, plan: Plan, folder: RunFolder, config: str, began: float) -> mlflow.About:
    """What MLflow is told of a run before it begins."""
    run = loaded.run
    return mlflow.About(
        name=folder.path.name,
        experiment=run.experiment,
        params={name: value for name, value in loaded.chosen().items() if not name.startswith(_UNTRACKED)},
        tags={
            "stage": "training",
            "raylway.workers": str(run.scale.workers),
            "mlflow.source.name": f"raylway train {run.recipe}",
            "mlflow.note.content": f"`{conclude.what(run)}`",
        },
        source=run.data.name,
        fingerprint=plan.fingerprint,
        config=config,
        began=began,
    )


def _close(tracker: mlflow.Tracker, status: str, tags: dict[str, str], screen: Screen) -> None:
    try:
        tracker.close(status, tags, patience_seconds=_LAST_WORD_SECONDS)
    except StorageError as error:  # the error that ended the run is the one to tell; this one only adds to it
        screen.say(str(error))


def _timed(stage: Callable[[], R]) -> tuple[R, float]:
    began = time.monotonic()
    return stage(), time.monotonic() - began
