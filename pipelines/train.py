"""Train: prepare the data, train on a worker group, score the test rows, register the model; each stage taken up where it stopped.

Starting is the dear part of a small run, so what can go side by side does: Ray starts while MLflow opens its database, the workers
start while the data are prepared.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cluster import session as cluster_session
from cluster import shards, workers
from cluster.session import Session
from pipelines import prepare as preparing
from pipelines.config import Loaded
from pipelines.data.prepared import Dataset
from pipelines.errors import CLUSTER, StorageError, WorkerFailed, code_of
from pipelines.folder import RunFolder, check_writable, write_atomically
from pipelines.prepare import Plan
from pipelines.screen import Screen
from pipelines.settings import Run
from pipelines.tracking import mlflow
from pipelines.tracking.journal import Journal, read

R = TypeVar("R")
_UNTRACKED = ("scale.", "track.", "storage", "name", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep")


class WorkerLost(Exception):
    """Workers died again and again without a new checkpoint between."""


def train(loaded: Loaded, *, again: bool = False, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Train what `loaded` describes and give back the result (DESIGN §7). A finished run is not trained twice, unless `again`.

    Raises the errors of pipelines.errors; the MLflow run is closed as FAILED or KILLED before.
    """
    began = began or time.time()
    run = loaded.run
    check_writable(run.root)
    uri = mlflow.tracking_uri(run.root, run.track.uri)
    mlflow.check(uri)
    plan = preparing.plan(run)
    identity = run.identity(plan.fingerprint)
    folder = _folder(run, plan, identity, again=again)
    if folder.result.exists():
        return _finished(folder, screen)
    with folder.locked("driver", wait_seconds=5):
        folder.abandoned.unlink(missing_ok=True)
        config = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)
        write_atomically(folder.config, config)
        screen.say(f"{folder.path.name}: {_what(run)}; log: {folder.log}")
        tracker = mlflow.Tracker(uri, folder, run.root, _about(loaded, plan, folder, config))
        try:
            return _stages(run, plan, folder, identity, tracker, screen, began)
        except KeyboardInterrupt:
            _close(tracker, "KILLED", {"stage": "interrupted"}, screen)
            raise
        except Exception as error:
            _close(tracker, "FAILED", {"stage": "failed", "cause": str(error)[:500], "exit_code": str(code_of(error))}, screen)
            raise


def _stages(
    run: Run, plan: Plan, folder: RunFolder, identity: str, tracker: mlflow.Tracker, screen: Screen, began: float
) -> dict[str, Any]:
    times: dict[str, float] = {}
    if run.scale.workers == 0:
        tracker.start()
        dataset, outcome = _here(run, plan, folder, identity, screen, times)
    else:
        with screen.captured(folder.log):
            dataset, outcome = _on_ray(run, plan, folder, identity, tracker, screen, times)
    with screen.captured(folder.log):
        return _conclude(run, plan, folder, tracker, screen, dataset, outcome, times, began)


def _here(run: Run, plan: Plan, folder: RunFolder, identity: str, screen: Screen, times: dict[str, float]) -> tuple[Dataset, Any]:
    """Train in this process, Ray never imported: prints, breakpoints and tracebacks are those of any script."""
    from pipelines.training.worker import Job, work

    dataset = _timed(times, "prepare", lambda: preparing.prepare(run, plan, preparing.in_process))
    threads = run.scale.threads or run.scale.cpus or cluster_session.local_resources().cpus
    with screen.progress(folder.journal, run.model.headline.metric) as progress:
        progress.expect(run.steps(len(dataset.train)), run.train.batch)
        return dataset, workers.run_here(work, Job(run, folder, plan.folder, identity, threads), gpus=run.scale.gpus)


def _on_ray(
    run: Run, plan: Plan, folder: RunFolder, identity: str, tracker: mlflow.Tracker, screen: Screen, times: dict[str, float]
) -> tuple[Dataset, Any]:
    with cluster_session.connect() as session, screen.progress(folder.journal, run.model.headline.metric) as progress:
        workers.preload()
        if not session.local:  # on a cluster of others the workers would hold the CPUs that preparing waits for
            _timed(times, "prepare", lambda: preparing.prepare(run, plan, shards.each))
        training = _in_background(lambda: _supervise(run, plan, folder, identity, session, screen))
        try:
            session.ready()
            tracker.start()
            dataset = _timed(times, "prepare", lambda: preparing.prepare(run, plan, shards.each))
            progress.expect(run.steps(len(dataset.train)), run.train.batch)
            return dataset, training.result()
        except BaseException:
            folder.abandoned.touch()
            raise


def _supervise(run: Run, plan: Plan, folder: RunFolder, identity: str, session: Session, screen: Screen) -> Any:
    """Launch the workers, and launch them again when one is lost; every launch goes on from the newest checkpoint."""
    from pipelines.training.worker import Job, guarded_work

    cpus, gpus = workers.share(session.resources(), workers=run.scale.workers, cpus=run.scale.cpus, gpus=run.scale.gpus)
    job = Job(run, folder, plan.folder, identity, run.scale.threads or cpus)
    in_a_row, newest = 0, ""
    while True:
        try:
            return workers.launch(guarded_work, job, workers=run.scale.workers, cpus=cpus, gpus=gpus, scratch=folder.path / ".ray")
        except workers.WorkersFailed as failed:
            cause = _cause(failed)
            if isinstance(cause, WorkerFailed):
                raise cause from None
            checkpoint = max((path.name for path in folder.checkpoints.glob("step-*")), default="")
            in_a_row = in_a_row + 1 if checkpoint == newest else 1
            newest = checkpoint
            if in_a_row > run.scale.retries:
                raise WorkerLost(
                    f"{failed}; {in_a_row} times in a row without a new checkpoint (scale.retries={run.scale.retries})"
                ) from None
            screen.say(f"lost {failed}; going on from {newest or 'the beginning'} ({in_a_row} of scale.retries={run.scale.retries})")


def _cause(failed: workers.WorkersFailed) -> WorkerFailed | None:
    """The first failure that is the workload's own, or None if a process was lost: then the others' errors are consequences."""
    raised = [error for error in failed.raised.values() if isinstance(error, WorkerFailed)]
    own = [error for error in raised if error.failure.code != CLUSTER]
    if failed.lost or not raised:
        return None
    return min(own or raised, key=lambda error: error.failure.at) if own else None


def _conclude(
    run: Run,
    plan: Plan,
    folder: RunFolder,
    tracker: mlflow.Tracker,
    screen: Screen,
    dataset: Dataset,
    outcome: Any,
    times: dict[str, float],
    began: float,
) -> dict[str, Any]:
    """Put the scores beside the baseline, draw the figures, register the model, close the run, write the result."""
    from pipelines.training import checkpoint

    evaluating = time.time()
    encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
    baseline = run.model.baseline(dataset.train, dataset.test, encoding)
    metrics = _record(run, folder, outcome, baseline)
    tracker.flush()
    tracker.log_figure("curves", _curves(folder.journal))
    for name, figure in run.model.figures(outcome.outputs, dataset.test, encoding).items():
        tracker.log_figure(name, figure)
    evaluated = time.time()
    model = None
    if run.model_name:
        from pipelines.tracking import registry

        model = registry.register(
            tracker.uri,
            run_id=tracker.run_id,
            name=run.model_name,
            workload=run.model,
            encoding=encoding,
            weights=checkpoint.weights_file(Path(outcome.checkpoint)),
            sample=dataset.sample,
            tags={"weights_sha256": outcome.weights_sha256, "data.fingerprint": plan.fingerprint},
        )
    registered = time.time()
    result = {
        "run_id": tracker.run_id,
        "run_name": folder.path.name,
        "status": "finished",
        "resumed_from_step": outcome.resumed_from_step,
        "steps": outcome.steps,
        "metrics": metrics,
        "weights_sha256": outcome.weights_sha256,
        "checkpoint": outcome.checkpoint,
        "model": vars(model) if model else None,
        "tracking_uri": mlflow.provenance.redact(tracker.uri),
        "run_url": tracker.run_url,
        "seconds": {
            "total": registered - began,
            "startup": outcome.first_step - began,
            "prepare": times["prepare"],
            "train": outcome.trained - outcome.first_step,
            "evaluate": outcome.evaluated - outcome.trained + evaluated - evaluating,
            "register": registered - evaluated,
        },
        "samples_per_second": outcome.samples_per_second,
        "workers": run.scale.workers,
    }
    note = _note(run, folder, result)
    tags = {"stage": "finished", "weights_sha256": outcome.weights_sha256, "mlflow.note.content": note}
    tracker.close("FINISHED", tags)
    result["seconds"]["total"] = time.time() - began
    write_atomically(folder.result, json.dumps(result, indent=1))
    for refused in outcome.refused_checkpoints:
        screen.say(f"refused checkpoint {refused}")
    _show(screen, folder, result)
    return result


def _record(run: Run, folder: RunFolder, outcome: Any, baseline: dict[str, float]) -> dict[str, float]:
    """Journal the scores of the end; every metric's last value, and the best of the headline."""
    headline = f"val/{run.model.headline.metric}"
    points = list(read(folder.journal))
    best = max if run.model.headline.mode == "max" else min
    scores = outcome.metrics | {f"baseline/{name}": value for name, value in baseline.items()}
    scores[f"best/{headline}"] = best(point.metrics[headline] for point in points if headline in point.metrics)
    journal = Journal(folder.journal)
    journal.write(outcome.steps, scores)
    journal.sync()
    journal.close()
    return {name: value for point in read(folder.journal) for name, value in point.metrics.items()}


def _folder(run: Run, plan: Plan, identity: str, *, again: bool) -> RunFolder:
    """The run's folder, made if need be. A name means one run only. Raises StorageError if it is another's."""
    stem = run.name or f"{run.recipe}-{_slug(plan.source.label)}-{identity[:8]}"
    parent, number = run.root / run.experiment, 1
    while again and (parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    folder = RunFolder(parent / (stem if number == 1 else f"{stem}-{number}"))
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.identity.exists() and folder.identity.read_text() != identity:
        raise StorageError(f"name={run.name} is taken by a run with other settings or data: {folder.config}; choose another name")
    write_atomically(folder.identity, identity)
    return folder


def _slug(label: str) -> str:
    kept = "".join(letter if letter.isalnum() else "-" for letter in label.lower().encode("ascii", "ignore").decode())
    return "-".join(part for part in kept.split("-") if part)[:20].strip("-") or "data"


def _about(loaded: Loaded, plan: Plan, folder: RunFolder, config: str) -> mlflow.About:
    run = loaded.run
    return mlflow.About(
        name=folder.path.name,
        experiment=run.experiment,
        params={name: value for name, value in loaded.chosen().items() if not name.startswith(_UNTRACKED)},
        tags={
            "stage": "training",
            "raylway.workers": str(run.scale.workers),
            "mlflow.source.name": f"raylway train {run.recipe}",
            "mlflow.note.content": f"`{_what(run)}`",
        },
        source=run.data.source,
        fingerprint=plan.fingerprint,
        config=config,
    )


def _what(run: Run) -> str:
    length = f"{run.train.epochs} epochs" if run.train.epochs else f"{run.train.steps:,} steps"
    where = f"{run.scale.workers} worker{'s' * (run.scale.workers > 1)}" if run.scale.workers else "this process"
    return f"{run.workload} on {run.data.source}, {length}, batch {run.train.batch}, {where}"


def _note(run: Run, folder: RunFolder, result: dict[str, Any]) -> str:
    headline = run.model.headline.metric
    metrics, model = result["metrics"], result["model"]
    lines = [
        f"**{_what(run)}**",
        "",
        f"test {headline} **{metrics[f'test/{headline}']:.4f}**; the naive answer gives {metrics[f'baseline/{headline}']:.4f}",
        "",
        f"folder `{folder.path}`, weights `{result['weights_sha256'][:12]}`",
    ]
    if model:
        lines += ["", f'`mlflow.pyfunc.load_model("{model["uri"]}")`']
    return "\n".join(lines)


def _show(screen: Screen, folder: RunFolder, result: dict[str, Any]) -> None:
    metrics, seconds, model = result["metrics"], result["seconds"], result["model"]
    names = sorted({name.partition("/")[2] for name in metrics if name.startswith("test/")})
    columns = ("validation", "test", "naive baseline")
    rows = [[name, *(_number(metrics.get(f"{kind}/{name}")) for kind in ("val", "test", "baseline"))] for name in names]
    screen.table("", ["", *columns], rows)
    rate = f", {result['samples_per_second']:,.0f} samples/s" if result["samples_per_second"] else ""
    resumed = f", resumed from step {result['resumed_from_step']:,}" if result["resumed_from_step"] else ""
    screen.say(f"{result['steps']:,} steps{rate}{resumed}")
    screen.say("  ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    if model:
        screen.say(f'model    {model["uri"]}   mlflow.pyfunc.load_model("models:/{model["name"]}@candidate").predict(…)')
    screen.say(f"run      {folder.path}")
    screen.say(f"compare  raylway ui --storage {folder.path.parent.parent}   then {result['run_url']}")


def _finished(folder: RunFolder, screen: Screen) -> dict[str, Any]:
    result = json.loads(folder.result.read_text())
    screen.say(f"{folder.path.name} is finished already; this is its result. --again trains it anew.")
    _show(screen, folder, result)
    return result


def _curves(path: Path) -> Any:
    from pipelines.tracking.curves import curves

    return curves(read(path))


def _close(tracker: mlflow.Tracker, status: str, tags: dict[str, str], screen: Screen) -> None:
    try:
        tracker.close(status, tags)
    except StorageError as error:  # the error that ended the run is the one to tell; this one only adds to it
        screen.say(str(error))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _timed(times: dict[str, float], name: str, stage: Callable[[], R]) -> R:
    began = time.time()
    try:
        return stage()
    finally:
        times.setdefault(name, time.time() - began)


def _in_background(function: Callable[[], R]) -> Future[R]:
    """`function` in a daemon thread: Ctrl-C must reach this one, and must not wait for that one."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fit", daemon=True).start()
    return future
