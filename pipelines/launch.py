"""Launch: prepare the data and train, in this process or on Ray; launch workers again when one is lost.

Starting is the dear part of a small run, so it goes side by side: Ray starts while torch is imported, the workers start while the data are
prepared and MLflow opens its database.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cluster import capacity, nodes, ray_data, ray_train
from cluster import session as cluster_session
from cluster.session import Session
from pipelines.data import dataset as prepared
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.data.preparation import Plan
from pipelines.errors import StorageError, cause_of
from pipelines.process import in_background
from pipelines.run_record import Attempt, RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import IDENTITY
from pipelines.screen import Screen
from pipelines.training import checkpoint
from pipelines.training.job import Job, Outcome, Paused

if TYPE_CHECKING:  # else imported where Ray is used: a training in this process has no use for them
    from cluster.shared_storage import SharedStorage
    from pipelines.elastic import Pause
    from pipelines.metrics_export import Gauges

R = TypeVar("R")
TrainingFunction = Callable[[], Callable[..., Outcome | Paused]]
"""Imports and returns the function that every worker of a run calls. Called while Ray starts, because it imports torch."""
_PAUSE_SECONDS = 20.0


def trained(
    function: TrainingFunction, job: Job, plan: Plan, attempt: Attempt, screen: Screen, *, meanwhile: Callable[[], None]
) -> tuple[Dataset, Outcome, float]:
    """Prepare the data and train: the dataset, the report of the first worker, the seconds that preparing took.

    `meanwhile` is called while the workers start.
    """
    return (_on_ray if job.run.scale.workers else _here)(function, job, plan, attempt, screen, meanwhile)


def job_of(run: Run, plan: Plan, folder: RunFolder, stop_after: int | None = None) -> Job:
    """The job that the workers of a run get, with as many threads as this process would have."""
    threads = run.scale.threads or run.scale.cpus or cluster_session.local_resources().cpus
    return Job(run, folder, plan.store, plan.fingerprint, folder.read(IDENTITY) or "", threads, stop_after)


def _here(
    function: TrainingFunction, job: Job, plan: Plan, attempt: Attempt, screen: Screen, meanwhile: Callable[[], None]
) -> tuple[Dataset, Outcome, float]:
    """Train in this process, Ray never imported: prints, breakpoints and tracebacks are those of any script."""
    run, work = job.run, function()
    meanwhile()
    attempt.stage = "prepare"
    dataset, seconds = _timed(lambda: preparing.prepare(run, plan, preparing.in_process))
    preparing.tell(dataset, screen.say)
    attempt.stage = "train"
    attempt.hold(0, job.threads, attempt.gpus)
    with screen.progress(job.folder.journal, run.model.headline.metric) as progress:
        progress.expect(job.steps(preparing.examples(run, dataset)["train"]), run.train.batch)
        return dataset, cast(Outcome, ray_train.run_here(work, job, gpus=run.scale.gpus)), seconds


def _on_ray(
    function: TrainingFunction, job: Job, plan: Plan, attempt: Attempt, screen: Screen, meanwhile: Callable[[], None]
) -> tuple[Dataset, Outcome, float]:
    from cluster import metrics
    from cluster.shared_storage import SharedStorage
    from pipelines import metrics_export
    from pipelines.elastic import Pause

    run, folder = job.run, job.folder
    watched = metrics_export.Gauges(run, folder)
    with (
        screen.captured(folder.log),
        cluster_session.connect() as session,
        metrics.exported(session, watched.read, tags=metrics_export.tags(run, folder)),
        screen.progress(folder.journal, run.model.headline.metric) as progress,
    ):
        ray_train.preload()
        on_ray = _OnRay(job, plan, session, attempt, screen, watched, SharedStorage(run.root, screen.say), Pause(folder.pause))
        made = None
        # a stream needs the encoding first; and on a cluster of others the workers would hold the CPUs that preparing waits for
        if run.data.mode == "stream" or not session.local:
            session.ready()
            on_ray.wait_for_room(on_ray.share())
            attempt.stage = "prepare"
            made = on_ray.prepare()
        before = on_ray.reached()
        training = in_background(lambda: on_ray.supervise(function))
        try:
            session.ready()
            meanwhile()
            attempt.stage = "prepare"
            dataset, seconds = made or on_ray.prepare()
            preparing.tell(dataset, screen.say)
            attempt.stage = "train"
            progress.expect(job.steps(preparing.examples(run, dataset)["train"]), run.train.batch)
            return dataset, on_ray.outcome(training, begun=lambda: not session.lost and on_ray.reached() != before), seconds
        except BaseException:
            folder.abandoned.touch()
            if session.lost:
                on_ray.part()
            raise


@dataclass(frozen=True)
class _OnRay:
    """The stages of a training on Ray, and what they share."""

    job: Job
    plan: Plan
    session: Session
    attempt: Attempt
    screen: Screen
    watched: Gauges
    storage: SharedStorage
    pause: Pause

    @property
    def spare(self) -> int:
        """CPUs left to readers: if workers held all, readers and workers of a stream would wait for each other for ever."""
        return int(self.job.run.data.mode == "stream" and not self.session.local)

    def share(self) -> tuple[int, float]:
        """(CPUs, GPUs) of one worker."""
        return capacity.worker_share(self.session.resources(), self.job.run.scale, spare=self.spare)

    def prepare(self) -> tuple[Dataset, float]:
        return _timed(lambda: preparing.prepare(self.job.run, self.plan, ray_data.each))

    def wait_for_room(self, share: tuple[int, float]) -> None:
        """Wait until a cluster of others has room for this run: also when it has lost so many nodes that it has to get others first.

        Raises ClusterError naming the nodes that have another storage.
        """
        if self.session.local:
            return
        self.storage.check()
        cpus, gpus = share
        nodes.until_free(self.job.run.scale.workers.least, cpus=cpus, gpus=gpus, spare=self.spare, say=self.screen.say)
        self.storage.check()  # nodes may have come meanwhile

    def supervise(self, function: TrainingFunction) -> Outcome | None:
        """Launch the workers, and again after each loss and pause; None where they were asked to stop."""
        from pipelines.elastic import WorkerGroup, pause_requested, with_restarts
        from pipelines.training.worker import guarded

        run, work = self.job.run, functools.partial(guarded, function(), pause_requested)
        cpus, gpus = self.share()
        job = replace(self.job, threads=run.scale.threads or cpus)
        stream = self.stream() if run.data.mode == "stream" else None
        group = WorkerGroup(run.scale.workers, cpus, gpus, here=self.session.resources() if self.session.local else None)
        sizes: list[int] = []

        def once() -> Outcome | Paused:
            self.wait_for_room((cpus, gpus))
            sizes.append(group.size())
            self.attempt.hold(sizes[-1], cpus, gpus, from_now=len(sizes) > 1)
            if run.scale.workers.elastic:
                self.screen.say(f"{sizes[-1]} of scale.workers={run.scale.workers} x {cpus} CPUs")
            with group.watched(sizes[-1], self.pause):
                return ray_train.launch(
                    work,
                    job,
                    workers=sizes[-1],
                    cpus=cpus,
                    gpus=gpus,
                    scratch=job.folder.scratch,
                    stream=stream,
                    patience_seconds=group.patience_seconds,
                )

        retries, restarted = run.scale.retries, self.watched.restarted
        return with_restarts(once, job.folder, pause=self.pause, retries=retries, say=self.screen.say, restarted=restarted)

    def stream(self) -> Any:
        """The training rows as a stream."""
        say, plan = self.screen.say, self.plan
        say("data.mode=stream: training rows come in no promised order; a resumed run goes on with other rows than it would have had")
        read, pieces = preparing.streamed(self.job.run, plan, prepared.proven(plan.store, plan.fingerprint))
        return ray_data.stream(read, pieces)

    def outcome(self, training: Future[Outcome | None], *, begun: Callable[[], bool]) -> Outcome:
        """The outcome of the training. Asked to stop, workers that have begun get some seconds to leave the checkpoint of their step.

        Raises KeyboardInterrupt when they have, or when asked a second time.
        """
        try:
            outcome = training.result()
        except KeyboardInterrupt:
            if begun():
                self.pause.request()
                self.screen.say("asked to stop: waiting for a checkpoint; once more to stop at once")
                try:
                    training.result(timeout=_PAUSE_SECONDS)
                except TimeoutError:
                    self.screen.say(f"no checkpoint within {_PAUSE_SECONDS:g} s; the last one counts")
                except Exception as error:
                    self.screen.say(f"no checkpoint: {cause_of(error)}; the last one counts")
            raise
        return cast(Outcome, outcome)  # only a training that was asked to stop has none

    def part(self) -> None:
        """Ask workers to checkpoint and exit after the cluster is lost: without a control plane Ray cannot end them, and they would train
        on for a minute and keep others from writing."""
        self.pause.request()
        self.screen.say("the cluster is lost: asked the workers to leave a checkpoint")
        try:
            with self.job.folder.locked("writer", wait_seconds=_PAUSE_SECONDS):
                newest = checkpoint.latest_name(self.job.folder.checkpoints)
        except StorageError:
            self.screen.say(f"no checkpoint within {_PAUSE_SECONDS:g} s; the last one counts")
        else:
            going_on = f"going on from {newest}" if newest else "there is no checkpoint"
            self.screen.say(f"the workers have ended; {going_on} the next time")

    def reached(self) -> tuple[int, str]:
        """The progress of the run as seen from outside: two of these differ if steps were taken between."""
        journal = self.job.folder.journal
        return journal.stat().st_size if journal.exists() else 0, checkpoint.latest_name(self.job.folder.checkpoints)


def _timed(stage: Callable[[], R]) -> tuple[R, float]:
    began = time.monotonic()
    return stage(), time.monotonic() - began
