"""The texts that people read on MLflow's pages, as Markdown: a run's description, finished or failed, and an experiment's five best."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run_states import Concluded, Cost
from pipelines.tracking import provenance
from pipelines.tracking.client import HEADLINE, NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_BEST, _TRIES = 5, 8
_BOARD = "## The five best"
"""The first words of our part of an experiment's description; what a person wrote above it is kept."""


def finished(done: Concluded, *, headline: str, folder: Path, cost: Cost, model: str | None, where: Sequence[str]) -> str:
    """Page of a finished run: network and data, scores beside the naive baseline, cost, and the commands to type next.

    `model` is the registered version's URI; `where` are the settings that say where the run is kept.
    """
    called, kept = model or folder.name, f"folder `{folder}`, weights `{done.weights_sha256[:12]}`"
    verbs = [["evaluate", called], *([["promote", called], ["predict", called, "INPUT", "OUTPUT"]] if model else [])]
    commands = [shlex.join(["raylway", *verb, *where]) for verb in (*verbs, ["compare", folder.name, "best"], ["reproduce", folder.name])]
    lines = [*_trained(done, headline), *done.facts, kept, _spent(cost), "Next:", _block(commands)]
    if model:
        lines += [f'In Python: `mlflow.pyfunc.load_model("{model}").predict(…)`']
    return "\n\n".join(lines)


def candidate(done: Concluded, *, headline: str, command: Sequence[str]) -> str:
    """A registered version that `raylway promote` has not judged yet."""
    return "\n\n".join([*_trained(done, headline), "Not judged by `raylway promote` yet:", _block([shlex.join(["raylway", *command])])])


def begun(what: str, command: Sequence[str]) -> str:
    """Page of a running run: network and data, and the command that resumes it, which a killed process can no longer write."""
    return "\n\n".join([f"**{what}**", "Should it be stopped, go on with:", _block([shlex.join(command)])])


def failed(what: str, *, stage: str, cause: str, hint: str, command: Sequence[str], resumes: bool) -> str:
    """Page of a failed run: the stage in which it ended, the cause, and the command, which `resumes` it or wants a change first."""
    lines = [f"**{what}**", f"{hint} (stage: {stage})", _block([cause]), "Go on with:" if resumes else "The command was:"]
    return "\n\n".join([*lines, _block([shlex.join(command)])])


def update_board(client: MlflowClient, experiment_id: str, headline: str) -> None:
    """Write the best runs by `headline` ("max accuracy") into the experiment's description; what a person wrote above them stays.

    Of two runs that end at once the slower might write what it saw before the other ended; so each looks again after it wrote.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(_TRIES)):
        experiment = client.get_experiment(experiment_id)
        board = _board(client, experiment_id, experiment.name, headline)
        before = experiment.tags.get(NOTE, "")
        theirs = before.partition(_BOARD)[0].rstrip()
        text = provenance.redact(f"{theirs}\n\n{board}" if theirs else board)
        if not board or text == before:
            return
        try:
            client.set_experiment_tag(experiment_id, NOTE, text)
        except MlflowException:  # two that write a tag for the first time at once: the second is told "UNIQUE constraint failed" (3.17)
            if not left:
                raise


def scores(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): every metric on validation and test rows, and the naive baselines on the test rows."""
    names = sorted({name.partition("/")[2] for name in metrics if name.startswith("test/")})
    answers = dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith("baseline/") and name.count("/") == 2)
    naive = {f"baseline/{answer}": answer.replace("_", " ") for answer in answers} or {"baseline": "naive baseline"}
    kinds = {"val": "validation", "test": "test"} | naive
    return ["", *kinds.values()], [[name, *(number(metrics.get(f"{kind}/{name}")) for kind in kinds)] for name in names]


def number(value: float | None) -> str:
    """A score to four places; empty where there is none."""
    return "" if value is None else f"{value:.4f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, pad: str = " &nbsp; ") -> str:
    """A Markdown table. MLflow's pages of runs draw it with nothing between columns, so cells bring their own space."""
    cells = [[cell.replace("|", "\\|") + (pad or " ") for cell in line] for line in (columns, *rows)]
    head, *body = ("| " + "| ".join(line) + "|" for line in cells)
    return "\n".join([head, "|" + " --- |" * len(columns), *body])


def _trained(done: Concluded, headline: str) -> list[str]:
    """Page of a registered version: network and data, and its scores."""
    test, baseline = (done.metrics[f"{kind}/{headline}"] for kind in ("test", "baseline"))
    return [f"**{done.what}**", f"test {headline} **{test:.4f}**; the naive baseline gives {baseline:.4f}", table(*scores(done.metrics))]


def _spent(cost: Cost) -> str:
    hours = f"{cost.cpu_hours:.4g} CPU-hours" + (f", {cost.gpu_hours:.4g} GPU-hours" if cost.gpu_hours else "")
    return f"{cost.seconds:,.1f} seconds, {hours}"


def _board(client: MlflowClient, experiment_id: str, experiment: str, headline: str) -> str:
    """The table of the best runs; empty where none has finished with a score."""
    mode, _, metric = headline.partition(" ")
    best = client.search_runs(
        [experiment_id],
        # the comparison leaves out runs without the metric, which MLflow would otherwise put among the others (3.17)
        f"attributes.status = 'FINISHED' and tags.`{HEADLINE}` = '{headline}' and metrics.`test/{metric}` > -1e300",
        max_results=_BEST,
        order_by=[f"metrics.`test/{metric}` {'DESC' if mode == 'max' else 'ASC'}", "attributes.start_time DESC"],
    )
    if not best:
        return ""
    rows = [[str(place), *_row(run, metric)] for place, run in enumerate(best, 1)]
    columns = ["", "run", f"test {metric}", "naive baseline", "workload", "data", "CPU-hours", "ended (UTC)"]
    score = number(best[0].data.metrics[f"test/{metric}"])
    first = f"{_BOARD}: {score} {metric} by {best[0].info.run_name}"  # all that MLflow shows before one asks for more
    rule = f"by {metric} on the test rows; {'higher' if mode == 'max' else 'lower'} is better"
    return "\n\n".join([first, rule, table(columns, rows), _block([f"raylway compare --experiment {experiment}"])])


def _row(run: MlflowRun, metric: str) -> list[str]:
    info, metrics = run.info, run.data.metrics
    hours = metrics.get("cost/cpu_hours")
    return [
        f"[{info.run_name}](#/experiments/{info.experiment_id}/runs/{info.run_id}?workflowType=machine_learning)",
        f"**{number(metrics.get(f'test/{metric}'))}**",
        number(metrics.get(f"baseline/{metric}")),
        run.data.params.get("workload", ""),
        run.data.tags.get("data.fingerprint", ""),
        "" if hours is None else f"{hours:.3g}",
        time.strftime("%Y-%m-%d %H:%M", time.gmtime((info.end_time or 0) / 1000)),
    ]


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```"])
