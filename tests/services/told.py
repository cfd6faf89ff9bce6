"""What a tracking server was told of a run, beside what the run's journal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.tracking.client import connect
from pipelines.tracking.journal import read

Points = dict[str, list[tuple[int, int, float]]]
"""metric -> its (step, time, value), sorted."""


def journalled(folder: Path) -> Points:
    found: Points = {}
    for point in read(folder / "journal.jsonl"):
        for name, value in point.metrics.items():
            found.setdefault(name, []).append((point.step, point.time, value))
    return {name: sorted(points) for name, points in found.items()}


def only_run(uri: str, experiment: str) -> Any:
    """The run of an experiment that has but one."""
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    [run] = client.search_runs([found.experiment_id])
    return run


def check_all_told(uri: str, run: Any, folder: Path) -> None:
    """Every point of the journal is there once, and nothing else but one point each of cost and seconds."""
    client, expected = connect(uri), journalled(folder)
    assert expected["loss"]
    for name in run.data.metrics:
        history = sorted((point.step, point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, name))
        if name in expected:
            assert history == expected[name], name
        else:
            assert name.startswith(("cost/", "seconds/")), name
            assert len(history) == 1, (name, history)
    assert set(expected) <= set(run.data.metrics)
