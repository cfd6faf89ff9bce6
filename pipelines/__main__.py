"""The command line: `raylway …` and `python -m pipelines …`. Verbs are imported when they are called, so `--help` is instant.

Here are the commands of who trains and judges models; those of who runs clusters and servers stand in pipelines/operating.py.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from pipelines import operating
from pipelines.command import AsJson, tell

_BEGAN = time.time()  # `seconds.startup` counts from here
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="A recipe in; a judged, registered model out."
)

Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `raylway recipes`) or a YAML file.")]
Model = Annotated[str, typer.Argument(help="models:/name@alias, models:/name/3, a run's id or name, `latest`, or a run's folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key.path=value, such as optim.lr=0.01.")]


@app.command()
def recipes(json: AsJson = False) -> None:
    """What can be trained, one line each, and about how long it takes here."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs.recipes import recipes

        return recipes(screen)

    tell(body, json, command=["recipes"])


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None, json: AsJson = False) -> None:
    """What would run: settings and their origin, parameters, memory, batches, resources, problems."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.config import load

        loaded = load(recipe, overrides or [])
        from pipelines.verbs.plan import plan

        return plan(loaded, screen)

    tell(body, json, command=["plan", recipe, *(overrides or [])], code=lambda result: 2 if result["problems"] else 0)


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
            from pipelines.verbs import prepare as datasets

            return datasets.pruned(storage, screen, days=days) if prune else datasets.listed(storage, screen)
        from pipelines.config import load

        if recipe is None:
            from pipelines.errors import RecipeError

            raise RecipeError("prepare: name a recipe, or give --list or --prune")
        run = load(recipe, overrides or []).run
        from pipelines.verbs.prepare import prepared

        return prepared(run, screen)

    tell(body, json, command=["prepare", *([recipe] if recipe else []), *(overrides or [])])


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
        from pipelines.verbs.train import train

        result = train(loaded, again=again, screen=screen, began=_BEGAN)
        _promote_first(loaded.run, result["run_name"], screen)
        return result

    tell(body, json, command=["train", recipe, *(overrides or [])])


@app.command()
def sweep(
    recipe: Recipe,
    overrides: Overrides = None,
    space: Annotated[
        list[str] | None, typer.Option(help="What to search: optim.lr=loguniform(1e-4,1e-1). May be given several times.")
    ] = None,
    trials: Annotated[str | None, typer.Option(help="Trials in all, or so many more: +16.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be searched, and the arithmetic of how many fit at once.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Search settings by trials. The same command goes on where it was stopped; --trials +N extends it."""
    more = int(trials[1:]) if trials and trials[0] == "+" and trials[1:].isdigit() else None
    given = [*(overrides or []), *(f"sweep.space.{each}" for each in space or [])]
    given += [f"sweep.trials={trials}"] if trials and more is None else []

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.config import load

        run = load(recipe, given).run  # a wrong setting must not wait for anything heavy
        from pipelines.verbs.sweep import planned, sweep

        if dry_run:
            return planned(recipe, given, screen)
        result = sweep(recipe, given, more=more, screen=screen, began=_BEGAN)
        _promote_first(run, result["sweep_id"], screen)
        return result

    options = [*(word for each in space or [] for word in ("--space", each)), *(("--trials", trials) if trials else ())]
    tell(body, json, command=["sweep", recipe, *(overrides or []), *options], code=lambda result: 2 if result.get("problems") else 0)


def _promote_first(run: Any, name: str, screen: Any) -> None:
    """Promote the model that the run or sweep of that name has just registered, if it is the first of its name."""
    from pipelines.run_record import RunFolder
    from pipelines.tracking.client import tracking_uri

    folder = RunFolder(run.root / run.experiment / name)
    if folder.unpromoted.exists():  # what promotes is imported only then
        from pipelines.verbs.promote import crown_registered

        uri = tracking_uri(run.root, run.track.uri)
        crown_registered(folder, storage=run.storage, uri=uri, patience_seconds=run.track.wait_seconds, screen=screen)


@app.command()
def compare(
    called: Annotated[
        list[str] | None, typer.Argument(metavar="RUN RUN …", help="Runs: an id, a name, latest, best. And storage=.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="The best runs of an experiment; or where latest and best are looked for.")] = None,
    sweep: Annotated[str | None, typer.Option(help="The best trials of a sweep.")] = None,
    json: AsJson = False,
) -> None:
    """Only what differs, how good, whether the difference is real, what it cost, and MLflow's page of the runs."""
    given = called or []
    named, settings = [word for word in given if "=" not in word], [word for word in given if "=" in word]

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs.compare import compare

        return compare(named, settings, experiment=experiment, sweep=sweep, screen=screen)

    tell(body, json, command=["compare", *given])


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="A run's id or name, latest or best.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="storage=, track.uri=, data.prepared=, data.cache=, scale.*=.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Only the first so many steps.")] = None,
    json: AsJson = False,
) -> None:
    """Train a run again from what was written down of it; is every number what it was?"""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs.reproduce import reproduce

        return reproduce(run, overrides or [], steps=steps, screen=screen)

    tell(body, json, command=["reproduce", run, *(overrides or [])], code=lambda result: 0 if result["reproduced"] else 4)


@app.command()
def verify(
    what: Annotated[str, typer.Argument(help="resume: stopped half way, the same bits. parity: several workers, the curve of one.")],
    recipe: Recipe,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=2, help="The first so many steps.")] = 20,
    json: AsJson = False,
) -> None:
    """Prove what is promised of every training, on this machine or this cluster."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.config import load
        from pipelines.errors import RecipeError

        if what not in ("resume", "parity"):
            raise RecipeError(f"verify {what}: there are resume and parity")
        loaded = load(recipe, overrides or [])
        from pipelines.verbs.verify import verify

        return verify(what, loaded, steps=steps, screen=screen)  # type: ignore[arg-type]

    tell(body, json, command=["verify", what, recipe, *(overrides or [])], code=lambda result: 0 if result["verified"] else 4)


@app.command()
def evaluate(
    model: Model,
    overrides: Overrides = None,
    slice_: Annotated[list[str] | None, typer.Option("--slice", help="A column of the source; scores of the rows of each value.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default: the test rows, or all of data.source.")] = None,
    json: AsJson = False,
) -> None:
    """Judge a model on its test rows, or with data.source=… on any others: metrics with intervals, by class, slice and horizon."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs.evaluate import evaluate

        return evaluate(model, overrides or [], columns=slice_ or [], split=split, screen=screen)

    tell(body, json, command=["evaluate", model, *(overrides or [])])


@app.command()
def promote(
    model: Model,
    overrides: Overrides = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the previous champion champion again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote in spite of the verdict; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; written on the version.")] = None,
    json: AsJson = False,
) -> None:
    """Make a candidate champion if it keeps its recipe's rules (promote.…) and beats the champion on the same test rows."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs import promote

        if rollback:
            return promote.roll_back(model, overrides or [], reason=reason, screen=screen)
        return promote.promote(model, overrides or [], force=force, reason=reason, screen=screen)

    tell(body, json, command=["promote", model, *(overrides or [])], code=lambda result: 3 if result["decision"] == "refused" else 0)


@app.command()
def predict(
    model: Model,
    input_: Annotated[str, typer.Argument(metavar="INPUT", help="What is read: a file, a folder, a glob or a URI.")],
    output: Annotated[str, typer.Argument(help="What is written: a file (.parquet, .csv, .jsonl) or a folder of parts; a path or a URI.")],
    overrides: Overrides = None,
    format_: Annotated[str | None, typer.Option("--format", help="Of the parts in a folder: parquet (the default), csv or jsonl.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace what this command wrote there before.")] = False,
    json: AsJson = False,
) -> None:
    """Ask a trained model about every row of INPUT. The same command again goes on with what was interrupted."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.errors import RecipeError

        if format_ not in (None, "parquet", "csv", "jsonl"):
            raise RecipeError(f"--format {format_}: no such format; there are parquet, csv and jsonl")
        from pipelines.verbs.predict import predict

        return predict(model, input_, output, overrides or [], form=format_, again=again, screen=screen)  # type: ignore[arg-type]

    tell(body, json, command=["predict", model, input_, output, *(overrides or [])])


app.command()(operating.track)
app.command(context_settings={"allow_interspersed_args": False})(operating.submit)
app.command()(operating.doctor)
app.command()(operating.ui)


def main() -> None:
    """The entry point of the `raylway` program."""
    app()


if __name__ == "__main__":
    main()
