"""Train: prepare the data, train on a worker group, then conclude; each stage is taken up where it stopped."""

from __future__ import annotations

import functools
import time
from typing import Any

from cluster import capacity
from cluster import session as cluster_session
from pipelines import launch, publish, score
from pipelines.config import Loaded
from pipelines.cost import Attempt
from pipelines.data import preparation as preparing
from pipelines.data.preparation import Plan
from pipelines.errors import CLUSTER, INTERRUPTED, MEMORY, StorageError, TrackingError, cause_of, code_of, mark_resumable
from pipelines.run_record import RunFolder, begin, check_writable, claim, slug, write_config
from pipelines.run_settings import Run
from pipelines.run_states import CONCLUDED, FINGERPRINT, RESULT
from pipelines.screen import Screen
from pipelines.tracking import pages, shipper
from pipelines.tracking.leaderboard import NOTE
from pipelines.training import checkpoint

_LAST_WORD_SECONDS = 10.0


def train(loaded: Loaded, *, again: bool = False, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Train what `loaded` describes and give back the result (DESIGN §7). A finished run is not trained twice, unless `again`.

    Raises the errors of pipelines.errors; the MLflow run is closed as FAILED or KILLED before.
    """
    attempt = Attempt(began or time.time())
    run = loaded.run
    check_writable(run.root)
    uri = shipper.tracking_uri(run.root, run.track.uri)
    shipper.check(uri)
    if not cluster_session.address():  # what this machine has is known, so what it can never do is said before anything starts
        attempt.hold(run.scale.workers.most, *capacity.worker_share(cluster_session.local_resources(), run.scale))
    plan = preparing.plan(run)
    folder = _folder(run, plan, again=again)
    if result := folder.read(RESULT):
        return score.finished_before(folder, result, screen)
    with folder.locked("driver", wait_seconds=5):
        folder.abandoned.unlink(missing_ok=True)
        folder.pause.unlink(missing_ok=True)
        config = write_config(run, folder)
        folder.write(FINGERPRINT, plan.fingerprint)
        screen.say(f"{folder.path.name}: {publish.what(run)}; log: {folder.log}")
        told = publish.about(loaded, plan, folder, config, attempt.began)
        begin(folder, told)
        tracker = shipper.Tracker(uri, folder, run.root, told)
        if done := folder.read(CONCLUDED):  # trained and judged before; MLflow was away then
            made = functools.partial(preparing.prepare, run, plan, preparing.in_process)
            return publish.deliver(run, tracker, done, screen, dataset=made, cost=lambda: attempt.settle(folder))
        try:
            job = launch.job_of(run, plan, folder)
            dataset, outcome, prepare_seconds = launch.trained(job, plan, attempt, screen, meanwhile=lambda: tracker.start(screen.say))
            with screen.captured(folder.log):
                return score.conclude(run, tracker, attempt, screen, dataset=dataset, outcome=outcome, prepare_seconds=prepare_seconds)
        except (Exception, KeyboardInterrupt) as error:
            if attempt.stage != "startup" or checkpoint.latest(folder.checkpoints):
                mark_resumable(error)
            if isinstance(error, TrackingError) and folder.read(CONCLUDED) is not None:
                raise  # trained and judged; only MLflow has not all of it yet
            _close(tracker, attempt, loaded, error, screen)
            raise


def _folder(run: Run, plan: Plan, *, again: bool) -> RunFolder:
    """The run's folder; `again` gives a new one."""
    identity = run.identity(plan.fingerprint)
    stem = run.name or f"{run.recipe}-{slug(plan.source.label)}-{identity[:8]}"
    parent, number = run.root / run.experiment, 1
    while again and (parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return claim(run, stem if number == 1 else f"{stem}-{number}", identity)


def _close(tracker: shipper.Tracker, attempt: Attempt, loaded: Loaded, error: BaseException, screen: Screen) -> None:
    """Close the run as KILLED or FAILED; its page says in which stage, why, and how to go on."""
    interrupted = isinstance(error, KeyboardInterrupt)
    tags = {
        "stage": attempt.stage,
        "cause": cause_of(error)[:500],
        "exit_code": str(code_of(error)),
        NOTE: pages.failed(
            publish.what(loaded.run),
            stage=attempt.stage,
            cause=cause_of(error)[:2000],
            hint="This run was interrupted." if interrupted else "This run failed.",
            command=publish.resume_command(loaded, tracker.folder),
            resumes=code_of(error) in (INTERRUPTED, CLUSTER, MEMORY),
        ),
    }
    try:
        cost = attempt.settle(tracker.folder)
        tracker.end("KILLED" if interrupted else "FAILED", tags, cost.metrics())
        tracker.last_word(patience_seconds=_LAST_WORD_SECONDS)
    except StorageError as error:  # the error that ended the run is the one to tell; this one only adds to it
        screen.say(str(error))
