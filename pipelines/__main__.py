"""The command line: `raylway …` and `python -m pipelines …`. Verbs are imported when they are called, so `--help` is instant."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

_BEGAN = time.time()  # `seconds.startup` counts from here
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="A recipe in; a judged, registered model out."
)
_ERROR_LINES = 25

Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `raylway recipes`) or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key.path=value, such as optim.lr=0.01.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout; all else to stderr.")]


@app.command()
def recipes(json: AsJson = False) -> None:
    """What can be trained, one line each, and about how long it takes here."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.recipes import recipes

        return recipes(screen)

    _tell(body, json, command=["recipes"])


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None, json: AsJson = False) -> None:
    """What would run: settings and their origin, parameters, memory, batches, resources, problems."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.config import load

        loaded = load(recipe, overrides or [])
        from pipelines.plan import plan

        return plan(loaded, screen)

    _tell(body, json, command=["plan", recipe, *(overrides or [])], code=lambda result: 2 if result["problems"] else 0)


@app.command()
def prepare(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name (see `raylway recipes`) or a YAML file.")] = None,
    overrides: Overrides = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the prepared data that are kept.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Free what was not opened for --days, and what was left half done.")] = False,
    days: Annotated[float, typer.Option(help="Days without use after which --prune frees.")] = 30,
    storage: Annotated[str, typer.Option(help="The storage folder, for --list and --prune.")] = "./runs",
    json: AsJson = False,
) -> None:
    """Prepare the data alone; or show and free what is prepared."""

    def body(screen: Any) -> dict[str, Any]:
        if list_ or prune:
            from pipelines import datasets

            return datasets.pruned(storage, screen, days=days) if prune else datasets.listed(storage, screen)
        from pipelines.config import load

        if recipe is None:
            from pipelines.errors import RecipeError

            raise RecipeError("prepare: name a recipe, or give --list or --prune")
        run = load(recipe, overrides or []).run
        from pipelines.datasets import prepared

        return prepared(run, screen)

    _tell(body, json, command=["prepare", *([recipe] if recipe else []), *(overrides or [])])


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="Train anew what is finished already.")] = False,
    json: AsJson = False,
) -> None:
    """Train, judge and register. The same command again resumes what was interrupted."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.config import load

        loaded = load(recipe, overrides or [])
        from pipelines.train import train

        return train(loaded, again=again, screen=screen, began=_BEGAN)

    _tell(body, json, command=["train", recipe, *(overrides or [])])


@app.command()
def ui(
    storage: Annotated[str, typer.Option(help="The storage folder of the runs.")] = "./runs",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """The MLflow UI on this storage."""
    from pathlib import Path

    database = Path(storage).expanduser().resolve() / "mlflow.db"
    if not database.is_file():
        typer.echo(f"error: {database}: no runs are kept there yet", err=True)
        raise typer.Exit(12)
    typer.echo(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning (Ctrl-C ends it)")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight more processes of 200 MB each, for nothing here
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    arguments = ["--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments])


def main() -> None:
    """The entry point of the `raylway` program."""
    app()


def _tell(
    body: Callable[[Any], dict[str, Any]], as_json: bool, *, command: list[str], code: Callable[[dict[str, Any]], int] = lambda _: 0
) -> None:
    """Run a verb; show its result, or say in a few lines what went wrong and exit with the code for it."""
    from pipelines.errors import code_of
    from pipelines.screen import Screen

    for stop in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a script's background process starts with it ignored
        signal.signal(stop, signal.default_int_handler)
    screen = Screen(as_json=as_json)
    try:
        result = body(screen)
    except (Exception, KeyboardInterrupt) as error:
        failed = code_of(error)
        lines = _explain(error, failed, command)
        typer.echo("\n".join(lines[:_ERROR_LINES]), err=True)
        screen.result({"status": "interrupted" if failed == 130 else "failed", "error": lines[0], "exit_code": failed})
        _leave(failed)
    else:
        screen.result(result)
        _leave(code(result))


def _explain(error: BaseException, code: int, command: list[str]) -> list[str]:
    import shlex
    import traceback

    from pipelines.errors import RecipeError, WorkerFailed

    resume = f"resume with: raylway {shlex.join(command)}"
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted", resume] if command[0] == "train" else ["interrupted"]
    if isinstance(error, RecipeError):
        return [f"error: {problem}" for problem in error.problems]
    lines = [f"error: {line}" if number == 0 else f"  {line}" for number, line in enumerate(str(error).splitlines() or [repr(error)])]
    if isinstance(error, WorkerFailed):
        lines += [f"  worker {error.failure.rank}" + (f", {error.failure.frame}" if error.failure.frame else "")]
    elif code == 10:
        lines = [f"error: {type(error).__name__}: {error}", *"".join(traceback.format_exception(error)).splitlines()[-20:]]
    if code in (10, 11, 12) and command[0] == "train":
        lines += [resume]
    return lines


def _leave(code: int) -> None:
    """Exit at once: what Ray's and MLflow's threads still do at the end of a process takes seconds and serves nobody."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
