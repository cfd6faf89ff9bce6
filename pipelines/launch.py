"""Launch: the data prepared and the workers trained, in this process or on Ray; launched again when one is lost.

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

from cluster import capacity, metrics, nodes, ray_data, ray_train
from cluster import session as cluster_session
from cluster.session import Session
from cluster.shared_storage import SharedStorage
from pipelines import metrics_export
from pipelines.cost import Attempt
from pipelines.data import dataset as prepared
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.data.preparation import Plan
from pipelines.elastic import STOP, Pause, Paused, WorkerGroup, with_restarts
from pipelines.errors import StorageError, cause_of
from pipelines.process import in_background
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import IDENTITY
from pipelines.screen import Screen
from pipelines.training import checkpoint
from pipelines.training.job import Job

if TYPE_CHECKING:
    from pipelines.training.worker import Outcome

R = TypeVar("R")
_PAUSE_SECONDS = 20.0


def trained(job: Job, plan: Plan, attempt: Attempt, screen: Screen, *, meanwhile: Callable[[], None]) -> tuple[Dataset, Outcome, float]:
    """Prepare the data and train: the dataset, what the first worker reports, the seconds that preparing took.

    `meanwhile` is called while the workers start.
    """
    return (_here if not job.run.scale.workers else _on_ray)(job, plan, attempt, screen, meanwhile)


def job_of(run: Run, plan: Plan, folder: RunFolder, stop_after: int | None = None) -> Job:
    """The job that the workers of a run get, with as many threads as this process would have."""
    threads = run.scale.threads or run.scale.cpus or cluster_session.local_resources().cpus
    return Job(run, folder, plan.store, plan.fingerprint, folder.read(IDENTITY) or "", threads, stop_after)


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
        return dataset, cast("Outcome", ray_train.run_here(work, job, gpus=run.scale.gpus)), seconds


def _on_ray(job: Job, plan: Plan, attempt: Attempt, screen: Screen, meanwhile: Callable[[], None]) -> tuple[Dataset, Outcome, float]:
    run, folder = job.run, job.folder
    watched = metrics_export.Gauges(run, folder)
    with (
        screen.captured(folder.log),
        cluster_session.connect() as session,
        metrics.exported(session, watched.read, tags=metrics_export.tags(run, folder)),
        screen.progress(folder.journal, run.model.headline.metric) as progress,
    ):
        ray_train.preload()
        storage = SharedStorage(run.root, screen.say)
        make = functools.partial(preparing.prepare, run, plan, ray_data.each)
        made = None
        # a stream needs the encoding first; and on a cluster of others the workers would hold the CPUs that preparing waits for
        if run.data.mode == "stream" or not session.local:
            session.ready()
            if not session.local:
                spare = int(run.data.mode == "stream")
                _room(run, *capacity.worker_share(session.resources(), run.scale, spare=spare), spare, storage, screen)
            attempt.stage = "prepare"
            made = _timed(make)
        pause, before = Pause(folder.pause), _reached(folder)
        training = in_background(lambda: _supervise(job, plan, session, attempt, screen, pause, watched, storage))
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
            if session.lost:
                _part(pause, folder, screen)
            raise


def _room(run: Run, cpus: int, gpus: float, spare: int, storage: SharedStorage, screen: Screen) -> None:
    """Wait until a cluster of others has room for this run: also when it has lost so many nodes that it has to get others first.

    Raises ClusterError naming the nodes that have another storage.
    """
    storage.check()
    nodes.until_free(run.scale.workers.least, cpus=cpus, gpus=gpus, spare=spare, say=screen.say)
    storage.check()  # nodes may have come meanwhile


def _finished(training: Future[Outcome | None], pause: Pause, screen: Screen, *, begun: Callable[[], bool]) -> Outcome:
    """What came of the training. Asked to stop, workers that have begun get some seconds to leave the checkpoint of their step.

    Raises KeyboardInterrupt when they have, or when asked a second time.
    """
    try:
        outcome = training.result()
    except KeyboardInterrupt:
        if begun():
            pause.request(STOP)
            screen.say("asked to stop: waiting for a checkpoint; once more to stop at once")
            try:
                training.result(timeout=_PAUSE_SECONDS)
            except TimeoutError:
                screen.say(f"no checkpoint within {_PAUSE_SECONDS:g} s; the last one counts")
            except Exception as error:
                screen.say(f"no checkpoint: {cause_of(error)}; the last one counts")
        raise
    return cast("Outcome", outcome)  # only who was asked to stop has none


def _part(pause: Pause, folder: RunFolder, screen: Screen) -> None:
    """End workers that Ray may end no more, once they have left a checkpoint: without a control plane they train on for a minute, and
    would keep others from writing."""
    pause.request(STOP)
    screen.say("the cluster is lost: asked the workers to leave a checkpoint")
    try:
        with folder.locked("writer", wait_seconds=_PAUSE_SECONDS):
            newest = checkpoint.latest_name(folder.checkpoints)
    except StorageError:
        screen.say(f"no checkpoint within {_PAUSE_SECONDS:g} s; the last one counts")
    else:
        screen.say(f"the workers have ended; {f'going on from {newest}' if newest else 'there is no checkpoint'} the next time")


def _reached(folder: RunFolder) -> tuple[int, str]:
    """How far a run has come, as far as can be seen from outside: two of these differ if steps were taken between."""
    newest = checkpoint.latest_name(folder.checkpoints)
    return folder.journal.stat().st_size if folder.journal.exists() else 0, newest


def _supervise(
    job: Job,
    plan: Plan,
    session: Session,
    attempt: Attempt,
    screen: Screen,
    pause: Pause,
    watched: metrics_export.Gauges,
    storage: SharedStorage,
) -> Outcome | None:
    from pipelines.training.worker import guarded_work

    run = job.run
    streaming = run.data.mode == "stream"
    spare = int(streaming and not session.local)  # if workers hold all CPUs, readers and workers wait for each other for ever
    cpus, gpus = capacity.worker_share(session.resources(), run.scale, spare=spare)
    told = replace(job, threads=run.scale.threads or cpus)
    stream = _stream(run, plan, screen) if streaming else None
    group = WorkerGroup(run.scale.workers, cpus, gpus, here=session.resources() if session.local else None)
    sizes: list[int] = []

    def once() -> Outcome | Paused:
        if not session.local:
            _room(run, cpus, gpus, spare, storage, screen)
        sizes.append(group.size())
        attempt.hold(sizes[-1], cpus, gpus, from_now=len(sizes) > 1)
        if run.scale.workers.elastic:
            screen.say(f"{sizes[-1]} of scale.workers={run.scale.workers} x {cpus} CPUs")
        with group.watched(sizes[-1], pause):
            return ray_train.launch(
                guarded_work,
                told,
                workers=sizes[-1],
                cpus=cpus,
                gpus=gpus,
                scratch=job.folder.scratch,
                stream=stream,
                patience_seconds=group.patience_seconds,
            )

    return with_restarts(once, job.folder, pause=pause, retries=run.scale.retries, say=screen.say, restarted=watched.restarted)


def _stream(run: Run, plan: Plan, screen: Screen) -> Any:
    """The training rows as a stream."""
    screen.say("data.mode=stream: training rows come in no promised order; a resumed run goes on with other rows than it would have had")
    read, pieces = preparing.streamed(run, plan, prepared.proven(plan.store, plan.fingerprint))
    return ray_data.stream(read, pieces)


def _timed(stage: Callable[[], R]) -> tuple[R, float]:
    began = time.monotonic()
    return stage(), time.monotonic() - began
