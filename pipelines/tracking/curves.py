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
