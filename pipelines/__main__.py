"""The command line: `raylway …` and `python -m pipelines …`. What a command calls is imported when it is called, so `--help` is instant."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines import command
from pipelines.command import Result

_BEGAN = time.time()  # `seconds.startup` counts from here
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="A recipe in; a judged, registered model out."
)
_command = functools.partial(command.command, app)

_RECIPE_HELP = "A recipe's name (see `raylway recipes`) or a YAML file."
Recipe = Annotated[str, typer.Argument(help=_RECIPE_HELP)]
Model = Annotated[str, typer.Argument(help="models:/name@alias, models:/name/3, a run's id or name, `latest`, or a run's folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key.path=value, such as optim.lr=0.01.")]


@_command()
def recipes(screen: Any) -> Result:
    """List the recipes, and about how long each takes on this machine."""
    from pipelines.verbs.recipes import recipes

    return recipes(screen)


@_command(exit_code=lambda result, _: 2 if result["problems"] else 0)
def plan(screen: Any, recipe: Recipe, overrides: Overrides = None) -> Result:
    """Show what would run: settings and their origin, parameters, memory, batches, resources, problems."""
    from pipelines.config import load

    loaded = load(recipe, overrides or [])
    from pipelines.verbs.plan import plan

    return plan(loaded, screen)


@_command()
def prepare(
    screen: Any,
    recipe: Annotated[str | None, typer.Argument(help=_RECIPE_HELP)] = None,
    overrides: Overrides = None,
    list_: Annotated[bool, typer.Option("--list", help="List the prepared data.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete prepared data not used for --days, and unfinished preparations.")] = False,
    days: Annotated[float, typer.Option(help="Days without use after which --prune deletes.")] = 30,
    storage: Annotated[str, typer.Option(help="The storage folder, for --list and --prune.")] = "./runs",
) -> Result:
    """Prepare the data only; or list and delete prepared data."""
    from pipelines.config import load
    from pipelines.errors import RecipeError

    if not (list_ or prune):
        if recipe is None:
            raise RecipeError("prepare: name a recipe, or give --list or --prune")
        run = load(recipe, overrides or []).run
    from pipelines.verbs import prepare as datasets

    if prune:
        return datasets.pruned(storage, screen, days=days)
    return datasets.listed(storage, screen) if list_ else datasets.prepared(run, screen)


@_command()
def train(
    screen: Any,
    recipe: Recipe,
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="Train a finished run anew.")] = False,
) -> Result:
    """Train a model, score it and register it. The same command again resumes an interrupted run."""
    from pipelines.config import load

    loaded = load(recipe, overrides or [])  # a wrong setting must not wait for anything heavy
    from pipelines.workflows import train_and_promote

    return train_and_promote(loaded, again=again, screen=screen, began=_BEGAN)


@_command(exit_code=lambda result, _: 2 if result.get("problems") else 0)
def sweep(
    screen: Any,
    recipe: Recipe,
    overrides: Overrides = None,
    space: Annotated[
        list[str] | None, typer.Option(help="Setting to search: optim.lr=loguniform(1e-4,1e-1). May be given several times.")
    ] = None,
    trials: Annotated[str | None, typer.Option(help="Trials in total, or +16 for 16 more.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the search space, and how many trials fit at once and why.")] = False,
) -> Result:
    """Search settings by trials. The same command again resumes the search; --trials +N extends it."""
    from pipelines.workflows import sweep_and_promote, words_of_search

    words, more = words_of_search(space or [], trials)
    words = [*(overrides or []), *words]
    if dry_run:
        from pipelines.search.study import study_of
        from pipelines.verbs.plan import plan
        from pipelines.verbs.sweep import planned

        study = study_of(recipe, words)
        return plan(study.loaded, screen) | {"sweep": planned(study, screen)}
    return sweep_and_promote(recipe, words, more=more, screen=screen, began=_BEGAN)


@_command()
def compare(
    screen: Any,
    called: Annotated[
        list[str] | None, typer.Argument(metavar="RUN RUN …", help="Runs: an id, a name, latest, best. And storage=.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="The best runs of this experiment; with runs: the experiment of latest and best.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="The best trials of a sweep.")] = None,
) -> Result:
    """Compare runs: the settings that differ, scores and whether they differ significantly, cost, and MLflow's page of the runs."""
    from pipelines.verbs.compare import compare

    return compare(*_names_and_settings(called), experiment=experiment, sweep=sweep, screen=screen)


@_command(exit_code=lambda result, _: 0 if result["reproduced"] else 4)
def reproduce(
    screen: Any,
    run: Annotated[str, typer.Argument(help="A run's id or name, latest or best.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="storage=, track.uri=, data.prepared=, data.cache=, scale.*=.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Compare only the first steps, this many.")] = None,
) -> Result:
    """Train a run again from its record, and compare every number."""
    from pipelines.verbs.reproduce import reproduce

    return reproduce(run, overrides or [], steps=steps, screen=screen)


@_command(exit_code=lambda result, _: 0 if result["verified"] else 4)
def verify(
    screen: Any,
    what: Annotated[
        Literal["resume", "parity"],
        typer.Argument(help="resume: stop half way and compare bits. parity: compare several workers with one."),
    ],
    recipe: Recipe,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps to train.")] = 20,
) -> Result:
    """Verify on this machine or cluster that a training resumes bit for bit, or follows the same curve on several workers."""
    from pipelines.config import load

    loaded = load(recipe, overrides or [])
    from pipelines.verbs.verify import verify

    return verify(what, loaded, steps=steps, screen=screen)


@_command()
def evaluate(
    screen: Any,
    model: Model,
    overrides: Overrides = None,
    slice_: Annotated[list[str] | None, typer.Option("--slice", help="Column of the source: score the rows of each of its values.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default: the test rows, or all of data.source.")] = None,
) -> Result:
    """Score a model on its test rows, or with data.source=… on others: metrics with intervals, by class, slice and horizon."""
    from pipelines.verbs.evaluate import evaluate

    return evaluate(model, overrides or [], columns=slice_ or [], split=split, screen=screen)


@_command(exit_code=lambda result, _: 3 if result["decision"] == "refused" else 0)
def promote(
    screen: Any,
    model: Model,
    overrides: Overrides = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the previous champion champion again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote although the rules refuse; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(help="Reason, stored with the model version.")] = None,
) -> Result:
    """Make a candidate champion if it keeps its recipe's rules (promote.…) and beats the champion on the same test rows."""
    from pipelines.verbs import promote

    if rollback:
        return promote.roll_back(model, overrides or [], reason=reason, screen=screen)
    return promote.promote(model, overrides or [], force=force, reason=reason, screen=screen)


@_command()
def predict(
    screen: Any,
    model: Model,
    input_: Annotated[str, typer.Argument(metavar="INPUT", help="Rows to predict: a file, a folder, a glob or a URI.")],
    output: Annotated[str, typer.Argument(help="A file (.parquet, .csv, .jsonl) or a folder of parts; a path or a URI.")],
    overrides: Overrides = None,
    format_: Annotated[
        Literal["parquet", "csv", "jsonl"] | None, typer.Option("--format", help="Format of the parts in a folder; default: parquet.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace the output of an earlier run of this command.")] = False,
) -> Result:
    """Predict every row of INPUT with a trained model. The same command again resumes an interrupted prediction."""
    from pipelines.verbs.predict import predict

    return predict(model, input_, output, overrides or [], form=format_, again=again, screen=screen)


@_command(exit_code=lambda result, given: 12 if given["sync"] and result["unsent"] else 0)
def track(
    screen: Any,
    called: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [key=value …]", help="One run, by name or folder; storage=, track.uri=.")
    ] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Send what MLflow lacks, and close the runs that have ended.")] = False,
    storage: Annotated[str | None, typer.Option(help="The storage folder of the runs; the same as storage=.")] = None,
) -> Result:
    """List what MLflow has not yet received of the runs in a storage; --sync sends it. Nothing is trained."""
    from pipelines.errors import RecipeError

    named, settings = _names_and_settings([*(called or []), *([f"storage={storage}"] if storage else [])])
    if len(named) > 1:
        raise RecipeError(f"track: name one run, or none for all of the storage, not {len(named)}")
    from pipelines.workflows import track_and_promote

    return track_and_promote(named[0] if named else None, settings, sync=sync, screen=screen)


def _exit_code_of_job(result: Result, given: dict[str, Any]) -> int:
    from pipelines.verbs.submit import code_of

    return code_of(result) if given["words"] else 0


@_command(exit_code=_exit_code_of_job, context_settings={"allow_interspersed_args": False})
def submit(
    screen: Any,
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- VERB …", help="train, sweep, prepare, evaluate, predict, promote, reproduce, verify."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if it is such an address.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The job's id; default: name= of the command, or made from the command.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when it is submitted.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Submit a finished run anew.")] = False,
    working_dir: Annotated[Path, typer.Option(help="Folder to upload; the command runs in it.")] = Path(),
    exclude: Annotated[
        list[str] | None, typer.Option(help="Files to leave out, in the syntax of .gitignore. May be given several times.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the cluster's jobs.")] = False,
    status: Annotated[str | None, typer.Option(metavar="ID", help="Show one job, and the end of its log.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="Stop a job after its workers have written a checkpoint.")] = None,
) -> Result:
    """Run a command as a job on a Ray cluster. The same command again follows the running job, or resumes one that ended early.

    The exit code is the job's own; 12 if it has none, 130 if it was stopped. Ctrl-C only stops following the log (130): the job goes on.
    """
    from pipelines.errors import RecipeError
    from pipelines.verbs import submit

    if sum([list_, status is not None, stop is not None, bool(words)]) != 1:
        raise RecipeError("submit: give a command behind --, such as `-- train cnn`, or one of --list, --status ID and --stop ID")
    if words:
        verb, parameters = _parsed(context, words)
        how = submit.Options(address, name, working_dir, tuple(exclude or []), again, wait=not no_wait)
        return submit.submit(verb, words[1:], parameters, how, screen)
    if list_:
        return submit.list_jobs(address, screen)
    return submit.show(address, status, screen) if status else submit.stop(address, stop or "", screen)


@_command(exit_code=lambda result, _: 12 if result["status"] == "FAIL" else 0)
def doctor(
    screen: Any,
    overrides: Annotated[list[str] | None, typer.Argument(help="storage=, track.uri=, scale.*= of the trainings to check for.")] = None,
    address: Annotated[str | None, typer.Option(help="The cluster, as host:6379; default: RAY_ADDRESS, else one is started here.")] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Only warn about a cluster without token authentication.")] = False,
) -> Result:
    """Check a cluster: versions, storage, MLflow, CPUs and GPUs, network, disks, clocks, tokens; each problem with its fix."""
    from pipelines.verbs.doctor import doctor

    return doctor(overrides or [], address=address, allow_open=allow_open, screen=screen)


@app.command()
def ui(
    storage: Annotated[str, typer.Option(help="The storage folder of the runs.")] = "./runs",
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; default: 5000, or a free one.")] = None,
) -> None:
    """Open the MLflow UI on this storage."""

    def serve(screen: Any) -> Result:
        from pipelines.verbs.ui import ui

        ui(storage, port, screen)

    command.run(serve)


def main() -> None:
    """The entry point of the `raylway` program."""
    app()


def _names_and_settings(words: list[str] | None) -> tuple[list[str], list[str]]:
    """(names, settings as key=value) of the arguments."""
    given = words or []
    return [word for word in given if "=" not in word], [word for word in given if "=" in word]


def _parsed(context: typer.Context, words: list[str]) -> tuple[str, dict[str, Any]]:
    """(verb, its parameters) of a command line of this program. Ends with exit code 2, as that command itself would, if it is none."""
    program: Any = context.parent
    name, verb, rest = program.command.resolve_command(context, words)
    return name, verb.make_context(name, rest, parent=program).params


if __name__ == "__main__":
    main()
