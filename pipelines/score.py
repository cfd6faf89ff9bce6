"""Conclude a training: scores beside the naive baseline, figures, and what its page says, all kept in the run's folder; then deliver it.

Each part can be done again after a kill without being there twice: points are journalled once, a model is registered once a run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pipelines import shown_by
from pipelines.cost import Attempt
from pipelines.data import stats
from pipelines.data.dataset import Dataset
from pipelines.publish import deliver, show, what
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import CONCLUDED, Concluded
from pipelines.screen import Screen
from pipelines.tracking import provenance, shipper

if TYPE_CHECKING:
    from pipelines.training.worker import Outcome


def conclude(
    run: Run,
    tracker: shipper.Tracker,
    attempt: Attempt,
    screen: Screen,
    *,
    dataset: Dataset,
    outcome: Outcome,
    prepare_seconds: float,
) -> dict[str, Any]:
    """Finish the run of `tracker` and give back its result, which is also kept in its folder.

    All is computed before MLflow is asked for anything, and kept in the folder until it has it.
    """
    attempt.stage = "evaluate"
    evaluating, folder = time.time(), tracker.folder
    metrics, _ = shown_by.keep_results(run, folder, dataset, "test", outcome.metrics, outcome.outputs, outcome.checkpoint)
    _describe(folder, dataset)
    ended = time.time()
    seconds = {
        "total": ended - attempt.began,
        "startup": outcome.first_step - attempt.began,
        "prepare": prepare_seconds,
        "train": outcome.trained - outcome.first_step,
        "evaluate": outcome.evaluated - outcome.trained + ended - evaluating,
    }
    done = _concluded(run, attempt, outcome, dataset, metrics, seconds)
    folder.write(CONCLUDED, done)
    attempt.settle(folder)
    for refused in outcome.refused_checkpoints:
        screen.say(f"refused checkpoint {refused}")
    attempt.stage = "register"
    return deliver(run, tracker, done, screen, dataset=lambda: dataset, cost=lambda: attempt.settle(folder))


def finished_before(folder: RunFolder, result: dict[str, Any], screen: Screen) -> dict[str, Any]:
    """The kept result of a run that is finished, shown."""
    screen.say(f"{folder.path.name} is finished already; this is its result. --again trains it anew.")
    show(screen, folder, result)
    return result


def _concluded(
    run: Run, attempt: Attempt, outcome: Outcome, dataset: Dataset, metrics: dict[str, float], seconds: dict[str, float]
) -> Concluded:
    counts = dataset.manifest.summary
    twice = f"; {counts.leaked:,} test rows have the same input as a training row" if counts.leaked else ""
    return Concluded(
        what=what(run),
        metrics=metrics,
        steps=outcome.steps,
        resumed_from_step=outcome.resumed_from_step,
        checkpoint=outcome.checkpoint,
        weights_sha256=outcome.weights_sha256,
        samples_per_second=outcome.samples_per_second,
        workers=outcome.workers if run.scale.workers else 0,
        tags={
            "raylway.threads": str(outcome.threads),
            "raylway.hardware": outcome.hardware,
            "raylway.cpus": f"{attempt.cpus:g}",
            "raylway.gpus": f"{attempt.gpus:g}",
        },
        facts=[
            f"data `{dataset.manifest.fingerprint}`: {counts.read:,} rows read = {counts.used:,} used + {counts.skipped:,} skipped{twice}"
        ],
        seconds=seconds,
    )


def _describe(folder: RunFolder, dataset: Dataset) -> None:
    """What is in the data, on the run page."""
    manifest = dataset.manifest
    page = stats.markdown(
        manifest.summary,
        source=manifest.source,
        fingerprint=manifest.fingerprint,
        columns=manifest.columns,
        sample=dataset.sample,
    )
    folder.page.mkdir(exist_ok=True)
    (folder.page / "data.md").write_text(provenance.redact(page))
    if manifest.summary.lengths:
        shown_by.keep(folder, {"lengths": stats.lengths_figure(manifest.summary)})
