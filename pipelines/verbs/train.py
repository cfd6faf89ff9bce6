"""Train: prepare the data, train on a worker group, then conclude; each stage is taken up where it stopped."""

from __future__ import annotations

import functools
import time
from typing import Any

import yaml

from cluster import session as cluster_session
from pipelines import launch, score
from pipelines.config import Loaded
from pipelines.cost import Attempt
from pipelines.data import preparation as preparing
from pipelines.data.preparation import Plan
from pipelines.errors import CLUSTER, INTERRUPTED, MEMORY, StorageError, TrackingError, cause_of, code_of, mark_going_on
from pipelines.publish import concluded, deliver
from pipelines.run_record import RunFolder, check_writable, write_atomically
from pipelines.run_settings import Run
from pipelines.screen import Screen
from pipelines.tracking import outbox, pages, provenance, shipper
from pipelines.tracking.leaderboard import HEADLINE, NOTE
from pipelines.training.job import Job

_LAST_WORD_SECONDS = 10.0
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
    uri = shipper.tracking_uri(run.root, run.track.uri)
    shipper.check(uri)
    if not cluster_session.address():  # what this machine has is known, so what it can never do is said before anything starts
        attempt.hold(run.scale.workers, *launch.share(run, cluster_session.local_resources()))
    plan = preparing.plan(run)
    folder = _folder(run, plan, again=again)
    if folder.result.exists():
        return score.finished_before(folder, screen)
    with folder.locked("driver", wait_seconds=5):
        folder.abandoned.unlink(missing_ok=True)
        folder.pause.unlink(missing_ok=True)
        config = write_config(run, folder)
        write_atomically(folder.fingerprint, plan.fingerprint)
        screen.say(f"{folder.path.name}: {score.what(run)}; log: {folder.log}")
        told = about(loaded, plan, folder, config, attempt.began)
        outbox.keep_about(folder, told)
        tracker = shipper.Tracker(uri, folder, run.root, told)
        if folder.concluded.exists():  # trained and judged before; MLflow was away then
            made = functools.partial(preparing.prepare, run, plan, preparing.in_process)
            return deliver(run, tracker, concluded(folder), screen, dataset=made, cost=lambda: attempt.settle(folder))
        try:
            job = job_of(run, plan, folder)
            dataset, outcome, prepare_seconds = launch.trained(job, plan, attempt, screen, meanwhile=lambda: tracker.start(screen.say))
            with screen.captured(folder.log):
                return score.conclude(run, tracker, attempt, screen, dataset=dataset, outcome=outcome, prepare_seconds=prepare_seconds)
        except (Exception, KeyboardInterrupt) as error:
            if attempt.stage != "startup" or list(folder.checkpoints.glob("step-*")):
                mark_going_on(error)
            if isinstance(error, TrackingError) and folder.concluded.exists():
                raise  # trained and judged; only MLflow has not all of it yet
            _close(tracker, attempt, loaded, error, screen)
            raise


def job_of(run: Run, plan: Plan, folder: RunFolder, stop_after: int | None = None) -> Job:
    """What the workers of a run are told, on as many threads as this process would have."""
    threads = run.scale.threads or run.scale.cpus or cluster_session.local_resources().cpus
    return Job(run, folder, plan.store, plan.fingerprint, folder.identity.read_text(), threads, stop_after)


def write_config(run: Run, folder: RunFolder) -> str:
    """Keep the whole settings of a run in its folder; their text."""
    config = provenance.redact(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
    write_atomically(folder.config, config)
    return config


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


def about(loaded: Loaded, plan: Plan, folder: RunFolder, config: str, began: float) -> shipper.About:
    """What MLflow is told of a run before it begins."""
    run = loaded.run
    return shipper.About(
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
            NOTE: pages.begun(score.what(run), _command(loaded, folder)),
        },
        source=run.data.name,
        fingerprint=plan.fingerprint,
        config=config,
        began=began,
        command=_command(loaded, folder),
    )


def _close(tracker: shipper.Tracker, attempt: Attempt, loaded: Loaded, error: BaseException, screen: Screen) -> None:
    """Close the run as KILLED or FAILED; its page says in which stage, why, and how to go on."""
    interrupted = isinstance(error, KeyboardInterrupt)
    tags = {
        "stage": attempt.stage,
        "cause": cause_of(error)[:500],
        "exit_code": str(code_of(error)),
        NOTE: pages.failed(
            score.what(loaded.run),
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
