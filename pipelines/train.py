"""Train: prepare the data, train on a worker group, then conclude; each stage is taken up where it stopped.

Starting is the dear part of a small run, so what can go side by side does: Ray starts while torch is imported, the workers start
while the data are prepared and MLflow opens its database.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

from cluster import metrics, shards, waiting, workers
from cluster import session as cluster_session
from cluster.session import Session
from pipelines import conclude, gauges
from pipelines import prepare as preparing
from pipelines.attempt import Attempt
from pipelines.config import Loaded
from pipelines.data import prepared
from pipelines.data.prepared import Dataset
from pipelines.deliver import concluded, deliver
from pipelines.errors import CLUSTER, INTERRUPTED, MEMORY, StorageError, TrackingError, cause_of, code_of
from pipelines.folder import RunFolder, check_writable, write_atomically
from pipelines.pausing import STOP, Pause, Paused
from pipelines.prepare import Plan
from pipelines.screen import Screen
from pipelines.settings import Run
from pipelines.supervision import supervised
from pipelines.team import Team
from pipelines.threads import in_background
from pipelines.tracking import mlflow, outbox, pages, provenance
from pipelines.tracking.leaderboard import HEADLINE, NOTE
from pipelines.training.job import Job

if TYPE_CHECKING:
    from pipelines.training.worker import Outcome

R = TypeVar("R")
_LAST_WORD_SECONDS = 10.0
_PAUSE_SECONDS = 20.0
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
    attempt = Attempt(began or time.time())
    run = loaded.run
    check_writable(run.root)
    uri = mlflow.tracking_uri(run.root, run.track.uri)
    mlflow.check(uri)
    if not cluster_session.address():  # what this machine has is known, so what it can never do is said before anything starts
        attempt.hold(run.scale.workers, *_share(run, cluster_session.local_resources()))
    plan = preparing.plan(run)
    folder = _folder(run, plan, again=again)
    if folder.result.exists():
        return conclude.finished_before(folder, screen)
    with folder.locked("driver", wait_seconds=5):
        folder.abandoned.unlink(missing_ok=True)
        folder.pause.unlink(missing_ok=True)
        config = write_config(run, folder)
        write_atomically(folder.fingerprint, plan.fingerprint)
        screen.say(f"{folder.path.name}: {conclude.what(run)}; log: {folder.log}")
        told = about(loaded, plan, folder, config, attempt.began)
        outbox.keep_about(folder, told)
        tracker = mlflow.Tracker(uri, folder, run.root, told)
        if folder.concluded.exists():  # trained and judged before; MLflow was away then
            made = functools.partial(preparing.prepare, run, plan, preparing.in_process)
            return deliver(run, tracker, concluded(folder), screen, dataset=made, cost=lambda: attempt.settle(folder))
        try:
            job = job_of(run, plan, folder)
            dataset, outcome, prepare_seconds = trained(job, plan, attempt, screen, meanwhile=lambda: tracker.start(screen.say))
            with screen.captured(folder.log):
                return conclude.conclude(run, tracker, attempt, screen, dataset=dataset, outcome=outcome, prepare_seconds=prepare_seconds)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, TrackingError) and folder.concluded.exists():
                raise  # trained and judged; only MLflow has not all of it yet
            _close(tracker, attempt, loaded, error, screen)
            raise


def job_of(run: Run, plan: Plan, folder: RunFolder, stop_after: int | None = None) -> Job:
    """What the workers of a run are told, on as many threads as this process would have."""
    threads = run.scale.threads or run.scale.cpus or cluster_session.local_resources().cpus
    return Job(run, folder, plan.store, plan.fingerprint, folder.identity.read_text(), threads, stop_after)


def trained(job: Job, plan: Plan, attempt: Attempt, screen: Screen, *, meanwhile: Callable[[], None]) -> tuple[Dataset, Outcome, float]:
    """Prepare the data and train: the dataset, what the first worker reports, the seconds that preparing took.

    `meanwhile` is called while the workers start.
    """
    return (_here if job.run.scale.workers == 0 else _on_ray)(job, plan, attempt, screen, meanwhile)


def _here(job: Job, plan: Plan, attempt: Attempt, screen: Screen, meanwhile: Callable[[], None]) -> tuple[Dataset, Outcome, float]:
    """Train in this process, Ray never imported: prints, breakpoints and tracebacks are those of any script."""
    from pipelines.training.worker import work

    run = job.run
    meanwhile()
    attempt.stage = "prepare"
    dataset, seconds = _timed(lambda: preparing.prepare(run, plan, preparing.in_process))
    preparing.tell(dataset, screen.say)
    attempt.stage = "train"
    attempt.hold(0, job.threads, attempt.gpus)
    with screen.progress(job.folder.journal, run.model.headline.metric) as progress:
        progress.expect(job.steps(preparing.examples(run, dataset)["train"]), run.train.batch)
        return dataset, cast("Outcome", workers.run_here(work, job, gpus=run.scale.gpus)), seconds


def _on_ray(job: Job, plan: Plan, attempt: Attempt, screen: Screen, meanwhile: Callable[[], None]) -> tuple[Dataset, Outcome, float]:
    run, folder = job.run, job.folder
    watched = gauges.Gauges(run, folder)
    with (
        screen.captured(folder.log),
        cluster_session.connect() as session,
        metrics.exported(session, watched.read, tags=gauges.tags(run, folder)),
        screen.progress(folder.journal, run.model.headline.metric) as progress,
    ):
        workers.preload()
        make = functools.partial(preparing.prepare, run, plan, shards.each)
        made = None
        # a stream needs the encoding first; and on a cluster of others the workers would hold the CPUs that preparing waits for
        if run.data.mode == "stream" or not session.local:
            session.ready()
            if not session.local:
                _room(run, session, screen)
            attempt.stage = "prepare"
            made = _timed(make)
        pause, before = Pause(folder.pause), _reached(folder)
        training = in_background(lambda: _supervise(job, plan, session, attempt, screen, pause, watched))
        try:
            session.ready()
            meanwhile()
            attempt.stage = "prepare"
            dataset, seconds = made or _timed(make)
            preparing.tell(dataset, screen.say)
            attempt.stage = "train"
            progress.expect(job.steps(preparing.examples(run, dataset)["train"]), run.train.batch)
            return dataset, _finished(training, pause, screen, begun=lambda: not session.lost and _reached(folder) != before), seconds
        except BaseException:
            folder.abandoned.touch()
            raise


def _room(run: Run, session: Session, screen: Screen) -> None:
    """Wait until a cluster of others has room for this run. Raises ClusterError with the arithmetic if it can never have."""
    spare = int(run.data.mode == "stream")
    cpus, gpus = _share(run, session.resources(), spare=spare)
    waiting.until_free(run.scale.workers.least, cpus=cpus, gpus=gpus, spare=spare, say=screen.say)


def _finished(training: Future[Outcome | None], pause: Pause, screen: Screen, *, begun: Callable[[], bool]) -> Outcome:
    """What came of the training. Asked to stop, workers that have begun get some seconds to leave the checkpoint of their step.

    Raises KeyboardInterrupt when they have, or when asked a second time.
    """
    try:
        outcome = training.result()
    except KeyboardInterrupt:
        if begun():
            pause.ask(STOP)
            screen.say("asked to stop: waiting for a checkpoint; once more to stop at once")
            try:
                training.result(timeout=_PAUSE_SECONDS)
            except TimeoutError:
                screen.say(f"no checkpoint within {_PAUSE_SECONDS:g} s; the last one counts")
            except Exception as error:
                screen.say(f"no checkpoint: {cause_of(error)}; the last one counts")
        raise
    return cast("Outcome", outcome)  # only who was asked to stop has none


def _reached(folder: RunFolder) -> tuple[int, str]:
    """How far a run has come, as far as can be seen from outside: two of these differ if steps were taken between."""
    newest = max((path.name for path in folder.checkpoints.glob("step-*")), default="")
    return folder.journal.stat().st_size if folder.journal.exists() else 0, newest


def _supervise(
    job: Job, plan: Plan, session: Session, attempt: Attempt, screen: Screen, pause: Pause, watched: gauges.Gauges
) -> Outcome | None:
    from pipelines.training.worker import guarded_work

    run = job.run
    streaming = run.data.mode == "stream"
    spare = int(streaming and not session.local)  # if workers hold all CPUs, readers and workers wait for each other for ever
    cpus, gpus = _share(run, session.resources(), spare=spare)
    told = replace(job, threads=run.scale.threads or cpus)
    stream = _stream(run, plan, screen) if streaming else None
    team = Team(run.scale.workers, cpus, gpus, here=session.resources() if session.local else None)
    sizes: list[int] = []

    def launch() -> Outcome | Paused:
        if not session.local:
            _room(run, session, screen)
        sizes.append(team.size())
        attempt.hold(sizes[-1], cpus, gpus, from_now=len(sizes) > 1)
        if run.scale.workers.elastic:
            screen.say(f"{sizes[-1]} of scale.workers={run.scale.workers} x {cpus} CPUs")
        with team.watched(sizes[-1], pause):
            return workers.launch(
                guarded_work,
                told,
                workers=sizes[-1],
                cpus=cpus,
                gpus=gpus,
                scratch=job.folder.path / ".ray",
                stream=stream,
                patience_seconds=team.patience_seconds,
            )

    return supervised(launch, job.folder, pause=pause, retries=run.scale.retries, say=screen.say, restarted=watched.restarted)


def _share(run: Run, there: cluster_session.Resources, *, spare: int = 0) -> tuple[int, float]:
    """(CPUs, GPUs) of each worker. Raises ClusterError with the arithmetic if there can never be so many."""
    scale = run.scale
    return workers.share(there, workers=scale.workers, least=scale.workers.least, cpus=scale.cpus, gpus=scale.gpus, spare=spare)


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
    folder = claimed(run, stem if number == 1 else f"{stem}-{number}", identity)
    write_atomically(folder.fingerprint, plan.fingerprint)
    return folder


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
            "stage": "train",
            HEADLINE: f"{run.model.headline.mode} {run.model.headline.metric}",
            "raylway.workers": str(run.scale.workers),
            "raylway.code": provenance.code(),
            "raylway.network_code": run.network_code[:12],
            "mlflow.source.name": f"raylway train {run.recipe}",
            NOTE: pages.begun(conclude.what(run), _command(loaded, folder)),
        },
        source=run.data.name,
        fingerprint=plan.fingerprint,
        config=config,
        began=began,
        command=_command(loaded, folder),
    )


def _close(tracker: mlflow.Tracker, attempt: Attempt, loaded: Loaded, error: BaseException, screen: Screen) -> None:
    """Close the run as KILLED or FAILED; its page says in which stage, why, and how to go on."""
    interrupted = isinstance(error, KeyboardInterrupt)
    tags = {
        "stage": attempt.stage,
        "cause": cause_of(error)[:500],
        "exit_code": str(code_of(error)),
        NOTE: pages.failed(
            conclude.what(loaded.run),
            stage=attempt.stage,
            cause=cause_of(error)[:2000],
            hint="This run was interrupted." if interrupted else "This run failed.",
            command=_command(loaded, tracker.folder),
            resumes=code_of(error) in (INTERRUPTED, CLUSTER, MEMORY),
        ),
    }
    try:
        cost = attempt.settle(tracker.folder)
        tracker.end("KILLED" if interrupted else "FAILED", tags, cost.metrics())
        tracker.last_word(patience_seconds=_LAST_WORD_SECONDS)
    except StorageError as error:  # the error that ended the run is the one to tell; this one only adds to it
        screen.say(str(error))


def _command(loaded: Loaded, folder: RunFolder) -> list[str]:
    """What to type to go on with the run in `folder`; a run that --again made has another name than its settings give."""
    words = loaded.words or (loaded.run.recipe,)
    found = folder.path.name == loaded.run.name or folder.path.name.endswith(folder.identity.read_text()[:8])
    return ["raylway", "train", *words, *([] if found else [f"name={folder.path.name}"])]


def _timed(stage: Callable[[], R]) -> tuple[R, float]:
    began = time.monotonic()
    return stage(), time.monotonic() - began
