"""Keep an experiment's description on MLflow's page up to date: the five best runs, by the headline metric on the test rows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipelines.tracking import pages, provenance
from pipelines.tracking.client import HEADLINE, NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_TRIES = 8


def update(client: MlflowClient, experiment_id: str, headline: str) -> None:
    """Write the best runs of those judged by `headline` ("max accuracy"); what a person wrote above them stays.

    Of two runs that end at once the slower might write what it saw before the other ended; so each looks again after it wrote.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(_TRIES)):
        experiment = client.get_experiment(experiment_id)
        mode, _, metric = headline.partition(" ")
        best = _best(client, experiment_id, headline)
        if not best:
            return
        before = experiment.tags.get(NOTE, "")
        theirs = before.partition(pages.BOARD)[0].rstrip()
        rows = [_row(run, metric) for run in best]
        board = pages.board(rows, metric=metric, mode=mode, experiment=experiment.name)
        text = provenance.redact(f"{theirs}\n\n{board}" if theirs else board)
        if text == before:
            return
        try:
            client.set_experiment_tag(experiment_id, NOTE, text)
        except MlflowException:  # two that write a tag for the first time at once: the second is told "UNIQUE constraint failed" (3.17)
            if not left:
                raise


def _best(client: MlflowClient, experiment_id: str, headline: str) -> list[Run]:
    mode, _, metric = headline.partition(" ")
    return list(
        client.search_runs(
            [experiment_id],
            # the comparison leaves out runs without the metric, which MLflow would otherwise put among the others (3.17)
            f"attributes.status = 'FINISHED' and tags.`{HEADLINE}` = '{headline}' and metrics.`test/{metric}` > -1e300",
            max_results=pages.BEST_OF,
            order_by=[f"metrics.`test/{metric}` {'DESC' if mode == 'max' else 'ASC'}", "attributes.start_time DESC"],
        )
    )


def _row(run: Run, metric: str) -> dict[str, str]:
    metrics, tags = run.data.metrics, run.data.tags
    hours = metrics.get("cost/cpu_hours")
    return {
        "run": run.info.run_name,
        "link": f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning",
        "score": pages.number(metrics.get(f"test/{metric}")),
        "baseline": pages.number(metrics.get(f"baseline/{metric}")),
        "workload": run.data.params.get("workload", ""),
        "data": tags.get("data.fingerprint", ""),
        "cpu_hours": "" if hours is None else f"{hours:.3g}",
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime((run.info.end_time or 0) / 1000)),
    }
