"""The texts that people read on MLflow's pages, as Markdown: a run's description, finished or failed, and an experiment's five best."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.run_states import Cost

if TYPE_CHECKING:
    from pipelines.run_settings import Run

BEST_OF = 5
BOARD = "## The five best"
"""What our part of an experiment's description begins with; what a person wrote above it is kept."""


def one_line(run: Run) -> str:
    """A run in one line: workload, data, length, batch and workers."""
    length = f"{run.train.epochs} epochs" if run.train.epochs else f"{run.train.steps:,} steps"
    where = f"{run.scale.workers} worker{'s' * (run.scale.workers.most > 1)}" if run.scale.workers else "this process"
    return f"{run.workload} on {run.data.name}, {length}, batch {run.train.batch}, {where}"


def finished(
    what: str,
    *,
    headline: str,
    metrics: Mapping[str, float],
    facts: Sequence[str],
    cost: Cost,
    name: str,
    model: str | None,
    where: Sequence[str],
) -> str:
    """What was trained on what, how good it is beside the naive answer, what it cost, and what to type next.

    `model` is the registered version's URI; `where` are the settings that say where the run is kept.
    """
    lines = [
        *_trained(what, headline, metrics),
        *facts,
        spent(cost),
        "Next:",
        _block(_next(name, model, where)),
    ]
    if model:
        lines += [f'In Python: `mlflow.pyfunc.load_model("{model}").predict(…)`']
    return "\n\n".join(lines)


def candidate(what: str, *, headline: str, metrics: Mapping[str, float], command: Sequence[str]) -> str:
    """A registered version that `raylway promote` has not judged yet."""
    rest = ["Not judged by `raylway promote` yet:", _block([shlex.join(["raylway", *command])])]
    return "\n\n".join([*_trained(what, headline, metrics), *rest])


def begun(what: str, command: Sequence[str]) -> str:
    """What is being tried, and the command that goes on should it be killed so hard that nobody can say so."""
    return "\n\n".join([f"**{what}**", "Should it be stopped, go on with:", _block([shlex.join(command)])])


def failed(what: str, *, stage: str, cause: str, hint: str, command: Sequence[str], resumes: bool) -> str:
    """What was tried, in which stage it ended, why, and the command: it goes on as it is, or wants something changed before."""
    return "\n\n".join(
        [
            f"**{what}**",
            f"{hint} (stage: {stage})",
            _block([cause]),
            "Go on with:" if resumes else "The command was:",
            _block([shlex.join(command)]),
        ]
    )


def board(best: Sequence[Mapping[str, str]], *, metric: str, mode: str, experiment: str) -> str:
    """The best runs of an experiment; each is {"run", "link", "score", "baseline", "workload", "data", "cpu_hours", "when"}."""
    names = ("baseline", "workload", "data", "cpu_hours", "when")
    rows = [
        [str(place), f"[{run['run']}]({run['link']})", f"**{run['score']}**", *(run[name] for name in names)]
        for place, run in enumerate(best, 1)
    ]
    columns = ["", "run", f"test {metric}", "naive answer", "workload", "data", "CPU-hours", "ended (UTC)"]
    first = f"{BOARD}: {best[0]['score']} {metric} by {best[0]['run']}"  # all that MLflow shows before one asks for more
    rule = f"by {metric} on the test rows; {'higher' if mode == 'max' else 'lower'} is better"
    return "\n\n".join([first, rule, table(columns, rows), _block([f"raylway compare --experiment {experiment}"])])


def scores(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of what was measured on validation and test rows, beside the naive answers on the test rows."""
    names = sorted({name.partition("/")[2] for name in metrics if name.startswith("test/")})
    answers = dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith("baseline/") and name.count("/") == 2)
    naive = {f"baseline/{answer}": answer.replace("_", " ") for answer in answers} or {"baseline": "naive baseline"}
    kinds = {"val": "validation", "test": "test"} | naive
    return ["", *kinds.values()], [[name, *(number(metrics.get(f"{kind}/{name}")) for kind in kinds)] for name in names]


def spent(cost: Cost) -> str:
    """A cost in one line."""
    hours = f"{cost.cpu_hours:.4g} CPU-hours" + (f", {cost.gpu_hours:.4g} GPU-hours" if cost.gpu_hours else "")
    return f"{cost.seconds:,.1f} seconds, {hours}"


def number(value: float | None) -> str:
    """A score as it is shown; nothing where there is none."""
    return "" if value is None else f"{value:.4f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, pad: str = " &nbsp; ") -> str:
    """A Markdown table. MLflow's pages of runs draw it with nothing between columns, so cells bring their own space."""
    cells = [[cell.replace("|", "\\|") + (pad or " ") for cell in line] for line in (columns, *rows)]
    head, *body = ("| " + "| ".join(line) + "|" for line in cells)
    return "\n".join([head, "|" + " --- |" * len(columns), *body])


def _trained(what: str, headline: str, metrics: Mapping[str, float]) -> list[str]:
    """What was trained, and how good it is."""
    good = f"test {headline} **{metrics[f'test/{headline}']:.4f}**; the naive answer gives {metrics[f'baseline/{headline}']:.4f}"
    return [f"**{what}**", good, table(*scores(metrics))]


def _next(name: str, model: str | None, where: Sequence[str]) -> list[str]:
    called = model or name
    verbs = [["evaluate", called], ["promote", called], ["predict", called, "INPUT", "OUTPUT"]] if model else [["evaluate", called]]
    return [shlex.join(["raylway", *verb, *where]) for verb in (*verbs, ["compare", name, "best"], ["reproduce", name])]


def _block(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```"])
