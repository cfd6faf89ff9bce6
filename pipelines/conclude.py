"""Conclude a training: scores beside the naive baseline, figures, the registered model, the closed MLflow run, the result.

Each part can be done again after a kill without being there twice: points are journalled once, a model is registered once a run.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import shown_by
from pipelines.attempt import Attempt, Cost
from pipelines.data import summary
from pipelines.data.prepared import Dataset
from pipelines.folder import RunFolder, write_atomically
from pipelines.judging import rows
from pipelines.prepare import Plan
from pipelines.promote import crown_first
from pipelines.screen import Screen
from pipelines.settings import Run
from pipelines.tracking import mlflow, pages
from pipelines.tracking.leaderboard import NOTE

if TYPE_CHECKING:
    from pipelines.tracking.registry import Registered
    from pipelines.training.worker import Outcome
    from workloads.base import Encoding


def conclude(
    run: Run,
    plan: Plan,
    tracker: mlflow.Tracker,
    attempt: Attempt,
    screen: Screen,
    *,
    dataset: Dataset,
    outcome: Outcome,
    prepare_seconds: float,
) -> dict[str, Any]:
    """Finish the run of `tracker` and give back its result, which is also kept in its folder."""
    attempt.stage = "evaluate"
    evaluating = time.time()
    encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
    test = run.model.examples(dataset.test, training=False)
    baselines = run.model.baselines(run.model.examples(dataset.train, training=True), test, encoding)
    metrics = shown_by.record(run, tracker.folder, outcome.metrics, baselines)
    tracker.flush()
    _describe(tracker, dataset)
    _draw(run, tracker, outcome, dataset, encoding)
    _keep_scores(run, tracker, outcome, dataset, encoding)
    attempt.stage, registering = "register", time.time()
    model = _register(run, plan, tracker, outcome, dataset, encoding, metrics) if run.model_name else None
    if model:
        crown_first(model, storage=run.storage, uri=tracker.uri, screen=screen)
    seconds = {
        "startup": outcome.first_step - attempt.began,
        "prepare": prepare_seconds,
        "train": outcome.trained - outcome.first_step,
        "evaluate": outcome.evaluated - outcome.trained + registering - evaluating,
        "register": time.time() - registering,
    }
    result = _result(run, tracker, outcome, metrics, model)
    cost = attempt.settle(tracker.folder)
    tags = {
        "stage": "finished",
        "weights_sha256": outcome.weights_sha256,
        "raylway.threads": str(outcome.threads),
        "raylway.hardware": outcome.hardware,
        "raylway.cpus": f"{attempt.cpus:g}",
        "raylway.gpus": f"{attempt.gpus:g}",
        NOTE: _note(run, tracker.folder, result, dataset, cost),
    }
    seconds = {"total": time.time() - attempt.began} | seconds
    tracker.close("FINISHED", tags, cost.metrics() | {f"seconds/{stage}": value for stage, value in seconds.items()})
    result["seconds"] = seconds | {"total": time.time() - attempt.began}
    write_atomically(tracker.folder.result, json.dumps(result, indent=1))
    for refused in outcome.refused_checkpoints:
        screen.say(f"refused checkpoint {refused}")
    _show(screen, tracker.folder, result)
    return result


def finished_before(folder: RunFolder, screen: Screen) -> dict[str, Any]:
    """The kept result of a run that is finished."""
    result = json.loads(folder.result.read_text())
    screen.say(f"{folder.path.name} is finished already; this is its result. --again trains it anew.")
    _show(screen, folder, result)
    return result


def what(run: Run) -> str:
    """A run in one line."""
    length = f"{run.train.epochs} epochs" if run.train.epochs else f"{run.train.steps:,} steps"
    where = f"{run.scale.workers} worker{'s' * (run.scale.workers > 1)}" if run.scale.workers else "this process"
    return f"{run.workload} on {run.data.name}, {length}, batch {run.train.batch}, {where}"


def _describe(tracker: mlflow.Tracker, dataset: Dataset) -> None:
    """What is in the data, on the run page."""
    manifest = dataset.manifest
    page = summary.markdown(
        manifest.summary,
        source=manifest.source,
        fingerprint=manifest.fingerprint,
        columns=manifest.columns,
        sample=dataset.sample,
    )
    tracker.log_text("data.md", page)
    if manifest.summary.lengths:
        tracker.log_figure("lengths", summary.lengths_figure(manifest.summary))


def _draw(run: Run, tracker: mlflow.Tracker, outcome: Outcome, dataset: Dataset, encoding: Encoding) -> None:
    from pipelines.training import checkpoint

    network = run.model.network(encoding).eval()
    checkpoint.load_weights(Path(outcome.checkpoint), network)
    test = run.model.examples(dataset.test, training=False)
    for name, figure in shown_by.figures(run, tracker.folder, network, outcome.outputs, test, encoding).items():
        tracker.log_figure(name, figure)


def _keep_scores(run: Run, tracker: mlflow.Tracker, outcome: Outcome, dataset: Dataset, encoding: Encoding) -> None:
    """What each test row adds to each score, for `raylway compare`."""
    test = run.model.examples(dataset.test, training=False)
    folder, _, name = rows.ARTIFACT.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="raylway-") as scratch:
        rows.write(Path(scratch) / name, rows.row_scores(run.model.judging(encoding), outcome.outputs, test))
        tracker.log_file(Path(scratch) / name, folder)


def _register(
    run: Run, plan: Plan, tracker: mlflow.Tracker, outcome: Outcome, dataset: Dataset, encoding: Encoding, metrics: dict[str, float]
) -> Registered:
    from pipelines.tracking import registry
    from pipelines.training import checkpoint

    assert run.model_name
    return registry.register(
        tracker.uri,
        run_id=tracker.run_id,
        name=run.model_name,
        workload=run.model,
        encoding=encoding,
        weights=checkpoint.weights_file(Path(outcome.checkpoint)),
        sample=dataset.sample,
        tags={"weights_sha256": outcome.weights_sha256, "data.fingerprint": plan.fingerprint},
        description=pages.candidate(
            what(run), headline=run.model.headline.metric, metrics=metrics, command=["promote", run.model_name, *_where(run)]
        ),
    )


def _result(run: Run, tracker: mlflow.Tracker, outcome: Outcome, metrics: dict[str, float], model: Registered | None) -> dict[str, Any]:
    """The JSON of `raylway train`, but for the seconds."""
    return {
        "run_id": tracker.run_id,
        "run_name": tracker.folder.path.name,
        "status": "finished",
        "resumed_from_step": outcome.resumed_from_step,
        "steps": outcome.steps,
        "metrics": metrics,
        "weights_sha256": outcome.weights_sha256,
        "checkpoint": outcome.checkpoint,
        "model": vars(model) if model else None,
        "tracking_uri": mlflow.provenance.redact(tracker.uri),
        "run_url": tracker.run_url,
        "samples_per_second": outcome.samples_per_second,
        "workers": outcome.workers if run.scale.workers else 0,
    }


def _note(run: Run, folder: RunFolder, result: dict[str, Any], dataset: Dataset, cost: Cost) -> str:
    """The run's description in MLflow, Markdown."""
    counts = dataset.manifest.summary
    twice = f"; {counts.leaked:,} test rows have the same input as a training row" if counts.leaked else ""
    return pages.finished(
        what(run),
        headline=run.model.headline.metric,
        metrics=result["metrics"],
        facts=[
            f"data `{dataset.manifest.fingerprint}`: {counts.read:,} rows read = {counts.used:,} used + {counts.skipped:,} skipped{twice}",
            f"folder `{folder.path}`, weights `{result['weights_sha256'][:12]}`",
        ],
        cost=cost,
        name=folder.path.name,
        model=result["model"] and result["model"]["uri"],
        where=_where(run),
    )


def _where(run: Run) -> list[str]:
    """What a command must be told to find the run."""
    return [*([f"storage={run.root}"] if run.storage != "./runs" else []), *([f"track.uri={run.track.uri}"] if run.track.uri else [])]


def _show(screen: Screen, folder: RunFolder, result: dict[str, Any]) -> None:
    metrics, model = result["metrics"], result["model"]
    screen.table("", *pages.scores(metrics))
    rate = f", {result['samples_per_second']:,.0f} samples/s" if result["samples_per_second"] else ""
    resumed = f", resumed from step {result['resumed_from_step']:,}" if result["resumed_from_step"] else ""
    screen.say(f"{result['steps']:,} steps{rate}{resumed}")
    screen.say("  ".join(f"{name} {value:.1f} s" for name, value in result["seconds"].items()))
    if model:
        screen.say(f'model    {model["uri"]}   mlflow.pyfunc.load_model("{model["uri"]}").predict(…)')
    screen.say(f"run      {folder.path}")
    if result["tracking_uri"] == f"sqlite:///{folder.path.parent.parent / 'mlflow.db'}":
        screen.say(f"look     raylway ui --storage {folder.path.parent.parent}   then {result['run_url']}")
    else:
        screen.say(f"look     {result['run_url']}")
