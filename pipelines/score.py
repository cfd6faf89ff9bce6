"""Score: the scores of a trained network beside naive baselines, its figures and its page, all kept in the run's folder.

It can be done again after a kill: points are journalled once, files are replaced. Runs and the trials of a sweep end alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.data import stats
from pipelines.data.dataset import Dataset
from pipelines.evaluation import reports
from pipelines.run_record import Attempt, RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import CONCLUDED, Concluded
from pipelines.tracking import provenance
from pipelines.tracking.journal import Journal, Point, read
from pipelines.training import checkpoint
from pipelines.training.job import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from workloads.base import Arrays, Encoding, Rows


def score_run(run: Run, folder: RunFolder, attempt: Attempt, *, dataset: Dataset, outcome: Outcome, prepare_seconds: float) -> Concluded:
    """Score a run that is trained. Everything is computed, and kept in its folder, before MLflow is asked for anything."""
    attempt.stage = "evaluate"
    began = time.time()
    metrics, _ = keep_results(run, folder, dataset, "test", outcome.metrics, outcome.outputs, outcome.checkpoint)
    _describe_data(folder, dataset)
    ended = time.time()
    counts = dataset.manifest.summary
    twice = f"; {counts.leaked:,} test rows have the same input as a training row" if counts.leaked else ""
    done = Concluded(
        what=run.summary,
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
        seconds={
            "total": ended - attempt.began,
            "startup": outcome.first_step - attempt.began,
            "prepare": prepare_seconds,
            "train": outcome.trained - outcome.first_step,
            "evaluate": outcome.evaluated - outcome.trained + ended - began,
        },
    )
    folder.write(CONCLUDED, done)
    attempt.settle(folder)
    return done


def keep_results(
    run: Run, folder: RunFolder, dataset: Dataset, split: str, scores: Mapping[str, float], outputs: Arrays, weights: str
) -> tuple[dict[str, float], nn.Module]:
    """Keep the results of a training, `scores` and `outputs` of the rows of `split`, in its folder: (all metrics, the network).

    `weights` is the last checkpoint. Baselines, and the scores of each row, are those of test rows.
    """
    encoding = run.model.encoding_type.model_validate(dataset.manifest.encoding)
    rows = run.model.examples(getattr(dataset, split), training=False)
    test = split == "test"
    baselines = run.model.baselines(run.model.examples(dataset.train, training=True), rows, encoding) if test else {}
    metrics = _journal(run, folder, scores, baselines)
    network = run.model.network(encoding).eval()
    checkpoint.load_weights(checkpoint.weights_file(Path(weights)), network)
    _draw(run, folder, network, encoding, outputs, rows)
    if test:
        reports.write_row_scores(folder.page / reports.ARTIFACT, reports.row_scores(run.model.judging(encoding), outputs, rows))
    return metrics, network


def _journal(run: Run, folder: RunFolder, scores: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Journal the scores of the end, beside naive baselines and the best of the headline; every metric's last value."""
    metric = run.model.headline.metric
    best = max if run.model.headline.mode == "max" else min
    written = dict(scores)
    if baselines:
        strongest = best(baselines.values(), key=lambda each: each[metric])
        written |= {f"baseline/{name}": value for name, value in strongest.items()}
    if len(baselines) > 1:
        written |= {f"baseline/{kind}/{name}": value for kind, each in baselines.items() for name, value in each.items()}
    headline = f"val/{metric}"
    written[f"best/{headline}"] = best(point.metrics[headline] for point in read(folder.journal) if headline in point.metrics)
    journal = Journal(folder.journal)
    journal.write(0, written)  # at step 0, MLflow draws a number as a bar beside other runs, and not as a curve of one point
    journal.sync()
    journal.close()
    return {name: value for point in read(folder.journal) for name, value in point.metrics.items()}


def _draw(run: Run, folder: RunFolder, network: nn.Module, encoding: Encoding, outputs: Arrays, rows: Rows) -> None:
    """Keep the curves, and the task's figures of the predictions for `rows`."""
    import torch

    with torch.no_grad():
        drawn: dict[str, Figure] = run.model.figures(network, outputs, rows, encoding)
    _keep_figures(folder, {"curves": curves(read(folder.journal))} | drawn)


def _describe_data(folder: RunFolder, dataset: Dataset) -> None:
    """Describe the data on the run's page."""
    manifest = dataset.manifest
    text = stats.markdown(
        manifest.summary, source=manifest.source, fingerprint=manifest.fingerprint, columns=manifest.columns, sample=dataset.sample
    )
    folder.page.mkdir(exist_ok=True)
    (folder.page / "data.md").write_text(provenance.redact(text))
    if manifest.summary.lengths:
        _keep_figures(folder, {"lengths": stats.lengths_figure(manifest.summary)})


def _keep_figures(folder: RunFolder, drawn: Mapping[str, Figure]) -> None:
    place = folder.page / "figures"
    place.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(place / f"{name}.png", pil_kwargs={"compress_level": 1})  # a third of the time, and a little larger


def curves(points: Iterable[Point]) -> Figure:
    """The curves of a run as one picture: a panel for each metric of the validation rows, with its values on the training batches."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        for name, value in point.metrics.items():
            series.setdefault(name, []).append((point.step, value))
    names = sorted(name.removeprefix("val/") for name in series if name.startswith("val/"))
    panels = max(1, len(names))
    figure = Figure(figsize=(5.5 * panels, 4))
    # set by hand, for the labels are known to be short: a layout that is worked out draws everything twice
    figure.subplots_adjust(left=0.6 / (5.5 * panels), right=1 - 0.15 / (5.5 * panels), bottom=0.13, top=0.91, wspace=0.14)
    for axes, name in zip(figure.subplots(1, panels, squeeze=False)[0], reversed(names), strict=False):
        for key, label in ((name, "training batch"), (f"val/{name}", "validation")):
            if key in series:
                axes.plot(*zip(*series[key], strict=True), label=label, linewidth=1.0 if key == name else 2.0)
        axes.set(title=name, xlabel="step", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
