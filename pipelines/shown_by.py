"""The results of a trained run, on its page: scores beside naive baselines, journalled once, scores of each row, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.evaluation import row_scores
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.tracking.journal import Journal, read
from pipelines.training import checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from pipelines.data.dataset import Dataset
    from workloads.base import Arrays, Encoding, Rows


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
    metrics = record(run, folder, scores, baselines)
    network = run.model.network(encoding).eval()
    checkpoint.load_weights(Path(weights), network)
    keep(folder, figures(run, folder, network, outputs, rows, encoding))
    if test:
        row_scores.write(folder.page / row_scores.ARTIFACT, row_scores.row_scores(run.model.judging(encoding), outputs, rows))
    return metrics, network


def record(run: Run, folder: RunFolder, scores: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Journal the scores of the end, beside those of naive answers and the best of the headline; every metric's last value."""
    metric = run.model.headline.metric
    best = max if run.model.headline.mode == "max" else min
    written = dict(scores)
    if baselines:
        strongest = best(baselines.values(), key=lambda each: each[metric])
        written |= {f"baseline/{name}": value for name, value in strongest.items()}
    if len(baselines) > 1:
        written |= {f"baseline/{answer}/{name}": value for answer, each in baselines.items() for name, value in each.items()}
    headline = f"val/{metric}"
    written[f"best/{headline}"] = best(point.metrics[headline] for point in read(folder.journal) if headline in point.metrics)
    journal = Journal(folder.journal)
    journal.write(0, written)  # at step 0, MLflow draws a number as a bar beside other runs, and not as a curve of one point
    journal.sync()
    journal.close()
    return {name: value for point in read(folder.journal) for name, value in point.metrics.items()}


def figures(run: Run, folder: RunFolder, network: nn.Module, outputs: Arrays, rows: Rows, encoding: Encoding) -> dict[str, Figure]:
    """The curves, and the task's figures of what the network said (`outputs`) of `rows`."""
    import torch

    from pipelines.tracking.curves import curves

    with torch.no_grad():
        drawn: dict[str, Any] = run.model.figures(network, outputs, rows, encoding)
    return {"curves": curves(read(folder.journal))} | drawn


def keep(folder: RunFolder, drawn: Mapping[str, Figure]) -> None:
    """Keep figures where the run's page takes them from."""
    place = folder.page / "figures"
    place.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(place / f"{name}.png", pil_kwargs={"compress_level": 1})  # a third of the time, and a little larger
