"""Publish a run in MLflow: its description before it begins, its page, model and scores when it is done, or why it failed.

Everything comes from the run's folder and can be sent again without being there twice. So `deliver` is the end of `raylway train` and,
where MLflow was away then, of `raylway track --sync`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Loaded
from pipelines.data.dataset import Dataset
from pipelines.errors import CLUSTER, INTERRUPTED, MEMORY, StorageError, cause_of, code_of
from pipelines.run_record import Attempt, RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import CONCLUDED, ENDING, IDENTITY, RESULT, UNPROMOTED, About, Concluded, Cost, Ending
from pipelines.screen import Screen
from pipelines.tracking import pages, provenance
from pipelines.tracking.client import HEADLINE, NOTE
from pipelines.tracking.shipper import Tracker
from pipelines.training import checkpoint

if TYPE_CHECKING:
    from pipelines.tracking.registry import Registered

_FINISHED = "FINISHED"
_LAST_WORD_SECONDS = 10.0
_UNTRACKED = (
    *("scale.", "track.", "sweep.", "promote.", "storage", "name"),
    *("train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep"),
)
"""Settings that are no parameters in MLflow, because they do not decide the weights."""


def about(loaded: Loaded, fingerprint: str, folder: RunFolder, config: str, began: float) -> About:
    """The description of a run before it begins."""
    run, command = loaded.run, resume_command(loaded, folder)
    return About(
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
            NOTE: pages.begun(run.summary, command),
        },
        source=run.data.name,
        fingerprint=fingerprint,
        config=config,
        began=began,
        command=command,
    )


def resume_command(loaded: Loaded, folder: RunFolder) -> list[str]:
    """The command that resumes the run in `folder`. It names a run made by --again, because its settings alone give another name."""
    words = loaded.words or (loaded.run.recipe,)
    found = folder.path.name == loaded.run.name or folder.path.name.endswith((folder.read(IDENTITY) or "")[:8])
    return ["raylway", "train", *words, *([] if found else [f"name={folder.path.name}"])]


def deliver(
    run: Run,
    tracker: Tracker,
    done: Concluded,
    screen: Screen,
    *,
    dataset: Callable[[], Dataset],
    cost: Callable[[], Cost],
    patience_seconds: float | None = None,
) -> dict[str, Any]:
    """Send, register and close the run of `tracker`; its result (DESIGN §7), which is also kept in its folder.

    Raises TrackingError if MLflow cannot be reached for so long (track.wait_seconds).
    """
    folder, began = tracker.folder, time.time()
    patience = run.track.wait_seconds if patience_seconds is None else patience_seconds

    def insist(work: Callable[[], Any]) -> Any:
        return tracker.insist(work, patience_seconds=patience)

    insist(tracker.send_page)
    model = insist(lambda: _register(run, tracker, done, dataset())) if run.model_name else None
    if model:
        folder.write(UNPROMOTED, vars(model))
    seconds = dict(done.seconds) | {"register": time.time() - began}
    result = _result(run, tracker, done, model)
    before = folder.read(ENDING)
    if before is None or before.status != _FINISHED:  # one that was sent in part is sent again as it was: its points are there once
        spent = cost()
        tags = {"stage": "finished", "weights_sha256": done.weights_sha256} | dict(done.tags)
        tags[NOTE] = pages.finished(
            done, headline=run.model.headline.metric, folder=folder.path, cost=spent, model=model.uri if model else None, where=_where(run)
        )
        seconds["total"] += time.time() - began
        values = spent.metrics() | {f"seconds/{stage}": value for stage, value in seconds.items()}
        folder.write(ENDING, Ending(_FINISHED, tags, values))
    insist(tracker.send_ending)
    result["seconds"] = seconds | {"total": done.seconds["total"] + time.time() - began}
    folder.write(RESULT, result)
    folder.remove(CONCLUDED)
    show(screen, folder, result)
    return result


def close_failed(loaded: Loaded, tracker: Tracker, attempt: Attempt, error: BaseException, screen: Screen) -> None:
    """Close a run as KILLED or FAILED; its page says in which stage, why, and how to resume."""
    interrupted = isinstance(error, KeyboardInterrupt)
    tags = {
        "stage": attempt.stage,
        "cause": cause_of(error)[:500],
        "exit_code": str(code_of(error)),
        NOTE: pages.failed(
            loaded.run.summary,
            stage=attempt.stage,
            cause=cause_of(error)[:2000],
            hint="This run was interrupted." if interrupted else "This run failed.",
            command=resume_command(loaded, tracker.folder),
            resumes=code_of(error) in (INTERRUPTED, CLUSTER, MEMORY),
        ),
    }
    try:
        tracker.end("KILLED" if interrupted else "FAILED", tags, attempt.settle(tracker.folder).metrics())
        tracker.last_word(patience_seconds=_LAST_WORD_SECONDS)
    except StorageError as error:  # the error that ended the run is the one to tell; this one only adds to it
        screen.say(str(error))


def register(
    run: Run, uri: str, run_id: str, dataset: Dataset, weights: Path, tags: Mapping[str, str], description: str = ""
) -> Registered:
    """Register the model of the run `run_id`, whose last checkpoint is `weights`, under the run's name of models."""
    from pipelines.tracking import registry

    assert run.model_name
    encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
    trained = registry.Trained(run.model, encoding, checkpoint.weights_file(weights), dataset.sample)
    tags = {"data.fingerprint": dataset.manifest.fingerprint} | dict(tags)
    return registry.register(uri, trained, run_id=run_id, name=run.model_name, tags=tags, description=description)


def _register(run: Run, tracker: Tracker, done: Concluded, dataset: Dataset) -> Registered:
    command = ["promote", run.model_name or "", *_where(run)]
    page = pages.candidate(done, headline=run.model.headline.metric, command=command)
    return register(run, tracker.uri, tracker.run_id, dataset, Path(done.checkpoint), {"weights_sha256": done.weights_sha256}, page)


def _result(run: Run, tracker: Tracker, done: Concluded, model: Registered | None) -> dict[str, Any]:
    """The JSON of `raylway train`, but for the seconds."""
    return {
        "run_id": tracker.run_id,
        "run_name": tracker.folder.path.name,
        "status": "finished",
        "resumed_from_step": done.resumed_from_step,
        "steps": done.steps,
        "metrics": dict(done.metrics),
        "weights_sha256": done.weights_sha256,
        "checkpoint": done.checkpoint,
        "model": vars(model) if model else None,
        "tracking_uri": provenance.redact(tracker.uri),
        "run_url": tracker.run_url,
        "samples_per_second": done.samples_per_second,
        "workers": done.workers,
    }


def _where(run: Run) -> list[str]:
    """The settings by which a command finds the run."""
    return [*([f"storage={run.root}"] if run.storage != "./runs" else []), *([f"track.uri={run.track.uri}"] if run.track.uri else [])]


def show(screen: Screen, folder: RunFolder, result: dict[str, Any]) -> None:
    """Show the result of a run on the screen."""
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
