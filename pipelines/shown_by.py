"""What a trained run is shown by: its scores beside naive answers, journalled once, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.tracking.journal import Journal, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from workloads.base import Arrays, Encoding, Rows


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
