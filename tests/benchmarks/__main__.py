"""Run the benchmarks named on the command line, or all but those that need much disk, one after another, and print one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.benchmarks import delivery, figures, memory, predicting, preparing, startup, sweeps, throughput, tracking
from tests.benchmarks.rows import Row

BENCHMARKS = {
    "throughput": throughput.measure,
    "delivery": delivery.measure,
    "tracking": tracking.measure,
    "startup": startup.measure,
    "sweeps": sweeps.measure,
    "figures": figures.measure,
    "preparing": preparing.measure,
    "predicting": predicting.measure,
    "memory": memory.measure,
}
_ONLY_IF_NAMED = {"memory"}
_WIDTH = 140


def main(names: Sequence[str]) -> int:
    """Exit code: 0 however the numbers are, 2 if there is no such benchmark."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"{', '.join(unknown)}: no such benchmark; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in names or [name for name in BENCHMARKS if name not in _ONLY_IF_NAMED]:
        print(f"{name} …", file=sys.stderr)
        rows += BENCHMARKS[name]()
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_table(rows))
    return 0


def _table(rows: Sequence[Row]) -> Table:
    cores = len(os.sched_getaffinity(0))
    table = Table("benchmark", "ours", "reference", "ratio (median, min-max)", "goal", "met", caption=f"{cores} cores; medians")
    for row in rows:
        met = {True: "yes", False: "no", None: ""}[row.met]
        table.add_row(row.benchmark, row.ours, row.reference, row.ratio, row.goal, met)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
