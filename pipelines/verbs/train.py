"""Train: plan, prepare the data, launch the workers, score, publish. Each stage resumes where it was stopped."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from cluster import capacity
from cluster import session as cluster_session
from pipelines import launch, publish, score
from pipelines.config import Loaded
from pipelines.data import preparation
from pipelines.data.preparation import Plan
from pipelines.errors import TrackingError, mark_resumable, resumed_as
from pipelines.run_record import Attempt, RunFolder, begin, check_writable, claim, slug, write_config
from pipelines.run_settings import Run
from pipelines.run_states import CONCLUDED, FINGERPRINT, RESULT
from pipelines.screen import Screen
from pipelines.tracking.client import check, tracking_uri
from pipelines.tracking.shipper import Tracker
from pipelines.training import checkpoint
from pipelines.training.job import Outcome, Paused


def train(loaded: Loaded, *, again: bool = False, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Train what `loaded` describes; returns the JSON of `raylway train`. A finished run is not trained twice, unless `again`.

    Raises the errors of pipelines.errors, after the MLflow run is closed as FAILED or KILLED.
    """
    run, attempt = loaded.run, Attempt(began or time.time())
    check_writable(run.root)
    check(uri := tracking_uri(run.root, run.track.uri))
    if not cluster_session.address():  # what this machine has is known, so what it can never do is said before anything starts
        attempt.hold(run.scale.workers.most, *capacity.worker_share(cluster_session.local_resources(), run.scale))
    plan = preparation.plan(run)
    folder = _folder(run, plan, again=again)
    if result := folder.read(RESULT):
        screen.say(f"{folder.path.name} is finished already; this is its result. --again trains it anew.")
        publish.show(screen, folder, result)
        return result
    with resumed_as(folder.path.name if again else None), folder.locked("driver", wait_seconds=5):
        tracker = _begin(loaded, plan, folder, uri, attempt, screen)
        if done := folder.read(CONCLUDED):  # trained and scored before, while MLflow was away
            prepare = functools.partial(preparation.prepare, run, plan, preparation.in_process)
            return publish.deliver(run, tracker, done, screen, dataset=prepare, cost=lambda: attempt.settle(folder))
        try:
            job = launch.job_of(run, plan, folder)
            meanwhile = functools.partial(tracker.start, screen.say)
            dataset, outcome, seconds = launch.trained(training_function, job, plan, attempt, screen, meanwhile=meanwhile)
            with screen.captured(folder.log):
                done = score.score_run(run, folder, attempt, dataset=dataset, outcome=outcome, prepare_seconds=seconds)
                for refused in outcome.refused_checkpoints:
                    screen.say(f"refused checkpoint {refused}")
                attempt.stage = "register"
                return publish.deliver(run, tracker, done, screen, dataset=lambda: dataset, cost=lambda: attempt.settle(folder))
        except (Exception, KeyboardInterrupt) as error:
            if attempt.stage != "startup" or checkpoint.latest(folder.checkpoints):
                mark_resumable(error)
            if not isinstance(error, TrackingError) or folder.read(CONCLUDED) is None:  # else only MLflow has not all of it yet
                publish.close_failed(loaded, tracker, attempt, error, screen)
            raise


def training_function() -> Callable[..., Outcome | Paused]:
    """The function that every worker calls with the job, its rank and its device: train from the newest checkpoint, score the test rows."""
    from pipelines.training.worker import work  # while Ray starts, because it imports torch

    return work


def _folder(run: Run, plan: Plan, *, again: bool) -> RunFolder:
    """The run's folder; `again` gives a new one."""
    identity = run.identity(plan.fingerprint)
    stem = run.name or f"{run.recipe}-{slug(plan.source.label)}-{identity[:8]}"
    parent, number = run.root / run.experiment, 1
    while again and (parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return claim(parent, stem if number == 1 else f"{stem}-{number}", identity)


def _begin(loaded: Loaded, plan: Plan, folder: RunFolder, uri: str, attempt: Attempt, screen: Screen) -> Tracker:
    """Write down what the run is, before anything starts."""
    config = write_config(loaded.run, folder)
    folder.write(FINGERPRINT, plan.fingerprint)
    screen.say(f"{folder.path.name}: {loaded.run.summary}; log: {folder.log}")
    about = publish.about(loaded, plan.fingerprint, folder, config, attempt.began)
    begin(folder, about)
    return Tracker(uri, folder, loaded.run.root, about)
