"""The commands of who runs clusters and servers: track, submit, doctor, ui. As in pipelines/__main__.py, which lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.command import AsJson, tell


def track(
    called: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [key=value …]", help="One run, by name or folder; storage=, track.uri=.")
    ] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Send what MLflow has not, and close the runs that ended meanwhile.")] = False,
    storage: Annotated[str | None, typer.Option(help="The storage folder of the runs; the same as storage=.")] = None,
    json: AsJson = False,
) -> None:
    """What MLflow has not been told yet of the runs of a storage; --sync sends it. Nothing is trained."""
    given = [*(called or []), *([f"storage={storage}"] if storage else [])]
    named, settings = [word for word in given if "=" not in word], [word for word in given if "=" in word]

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.errors import RecipeError, StorageError

        if len(named) > 1:
            raise RecipeError(f"track: name one run, or none for all of the storage, not {len(named)}")
        from pipelines.verbs.track import track, unpromoted

        result = track(named[0] if named else None, settings, sync=sync, screen=screen)
        for folder, root, uri in unpromoted(named[0] if named else None, settings) if sync else ():
            from pipelines.verbs.promote import crown_registered

            try:
                crown_registered(folder, storage=str(root), uri=uri, patience_seconds=0, screen=screen)
            except StorageError as error:
                screen.say(f"{folder.path.name}: {error}")
        return result

    command = ["track", *(["--sync"] if sync else []), *given]
    tell(body, json, command=command, code=lambda result: 12 if sync and result["unsent"] else 0)


def submit(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- VERB …", help="train, sweep, prepare, evaluate, predict, promote, reproduce, verify."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if it is such an address.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The job's id; default: name= of the command, or made of what it is.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when it is submitted.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Submit a run anew that has finished.")] = False,
    working_dir: Annotated[Path, typer.Option(help="The folder that goes up, and that the command is run in.")] = Path(),
    exclude: Annotated[list[str] | None, typer.Option(help="Leave out, as .gitignore writes it. May be given several times.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the cluster's jobs.")] = False,
    status: Annotated[str | None, typer.Option(metavar="ID", help="Show one job, and the end of its log.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="Stop a job when its workers have left a checkpoint.")] = None,
    json: AsJson = False,
) -> None:
    """Run a command as a job of a Ray cluster. The same again attaches to it while it runs, and resumes it where it ended early.

    The exit code is the job's own; 12 if it has none, 130 if it was stopped. Ctrl-C only ends the following (130): the job goes on.
    """
    verb, given = _parsed(context, words or []) if words else ("", {})

    def body(screen: Any) -> dict[str, Any]:
        from pipelines import jobs
        from pipelines.verbs import submit

        if sum([list_, status is not None, stop is not None, bool(words)]) != 1:
            from pipelines.errors import RecipeError

            raise RecipeError("submit: give a command behind --, such as `-- train cnn`, or one of --list, --status ID and --stop ID")
        if list_:
            return jobs.listed(address, screen)
        if status or stop:
            return jobs.looked_at(address, status, screen) if status else jobs.stopped(address, stop or "", screen)
        asked = submit.Asked(address, name, working_dir, tuple(exclude or []), again, wait=not no_wait)
        return submit.submit(verb, (words or [])[1:], given, asked, screen)

    def code(result: dict[str, Any]) -> int:
        from pipelines.verbs.submit import code_of

        return code_of(result) if words else 0

    tell(body, json, command=["submit"], code=code)


def _parsed(context: typer.Context, words: list[str]) -> tuple[str, dict[str, Any]]:
    """(verb, its parameters) of a command line of this program. Ends with exit code 2, as that command itself would, if it is none."""
    program: Any = context.parent
    name, command, rest = program.command.resolve_command(context, words)
    return name, command.make_context(name, rest, parent=program).params


def doctor(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="storage=, track.uri=, scale.*=: what the cluster is to be fit for.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="The cluster, as host:6379; default: RAY_ADDRESS, else one is started here.")] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Only warn of a cluster that asks for no token.")] = False,
    json: AsJson = False,
) -> None:
    """Is a cluster fit to train on? Versions, storage, MLflow, CPUs and GPUs, network, disks, clocks, tokens: each with its fix."""
    given = overrides or []

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs.doctor import doctor

        return doctor(given, address=address, allow_open=allow_open, screen=screen)

    tell(body, json, command=["doctor", *given], code=lambda result: 12 if result["status"] == "FAIL" else 0)


def ui(
    storage: Annotated[str, typer.Option(help="The storage folder of the runs.")] = "./runs",
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; default: 5000, or a free one.")] = None,
) -> None:
    """The MLflow UI on this storage."""

    def body(screen: Any) -> dict[str, Any]:
        from pipelines.verbs.ui import ui

        ui(storage, port, screen)

    tell(body, False, command=["ui"])
