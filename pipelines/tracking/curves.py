"""The run's curves as one picture: each metric over the steps, training and validation together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipelines.tracking.journal import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(points: Iterable[Point]) -> Figure:
    """One panel for each metric that the validation rows were scored by."""
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        for name, value in point.metrics.items():
            series.setdefault(name, []).append((point.step, value))
    names = sorted(name.removeprefix("val/") for name in series if name.startswith("val/"))
    figure = Figure(figsize=(5.5 * max(1, len(names)), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], reversed(names), strict=False):
        for key, label in ((name, "training batch"), (f"val/{name}", "validation")):
            if key in series:
                axes.plot(*zip(*series[key], strict=True), label=label, linewidth=1.0 if key == name else 2.0)
        axes.set(title=name, xlabel="step", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
