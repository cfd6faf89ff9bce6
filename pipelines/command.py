"""A function as a command of the program: its result on the screen or as JSON, its failure in a few lines, and an exit code."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

Result = dict[str, Any]
_JSON = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout; all else to stderr.")]
_ERROR_LINES = 25
_RESUMED = ("train", "sweep")
_STOPS = (signal.SIGINT, signal.SIGTERM)


def command(
    app: typer.Typer, *, exit_code: Callable[[Result, dict[str, Any]], int] = lambda *_: 0, **options: Any
) -> Callable[[Callable[..., Result]], Any]:
    """Add a function to `app` as a command with the option --json. Its first parameter is the Screen, the others are the command's.

    `exit_code` takes the result and the command's parameters.
    """

    def decorate(function: Callable[..., Result]) -> Any:
        @functools.wraps(function)
        def called(json: bool, **given: Any) -> None:
            run(lambda screen: function(screen, **given), as_json=json, exit_code=lambda result: exit_code(result, given))

        signature = inspect.signature(function, eval_str=True)
        as_json = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON)
        called.__signature__ = signature.replace(parameters=[*list(signature.parameters.values())[1:], as_json])  # type: ignore[attr-defined]
        return app.command(**options)(called)

    return decorate


def run(verb: Callable[[Any], Result], *, as_json: bool = False, exit_code: Callable[[Result], int] = lambda _: 0) -> NoReturn:
    """Call `verb` with a Screen, show what it returns or raises, and end the process with the exit code for it."""
    from pipelines import process
    from pipelines.errors import INTERRUPTED, code_of
    from pipelines.screen import Screen

    process.collect_rarely()
    for stop in _STOPS:  # SIGINT too: a script's background process starts with it ignored
        signal.signal(stop, _interrupt)
    screen = Screen(as_json=as_json)
    try:
        result = verb(screen)
    except (typer.TyperException, typer.Exit):  # of a command line within this one (submit): typer ends with its usage
        raise
    except (Exception, KeyboardInterrupt) as error:
        for stop in _STOPS:  # asked once more while it says how it ended, it would end without
            signal.signal(stop, signal.SIG_IGN)
        from pipelines.tracking.provenance import redact

        code = code_of(error)
        lines = [redact(line) for line in _explain(error, code)[:_ERROR_LINES]]
        typer.echo("\n".join(lines), err=True)
        screen.result({"status": "interrupted" if code == INTERRUPTED else "failed", "error": lines[0], "exit_code": code})
        _leave(code)
    screen.result(result)
    _leave(exit_code(result))


def _interrupt(number: int, frame: Any) -> NoReturn:
    # where Ray's core worker is in the process, SIGTERM also goes through absl's handler of crashes, which sets an alarm that aborts the
    # process 3 s later (Ray 2.60): less than workers may need to leave a checkpoint
    signal.alarm(0)
    raise KeyboardInterrupt


def _explain(error: BaseException, code: int) -> list[str]:
    from pipelines.errors import CLUSTER, MEMORY, WORKLOAD, RecipeError, WorkerFailed, is_resumable, name_to_resume

    resumes = sys.argv[1:2] != [] and sys.argv[1] in _RESUMED
    resume = f"resume with: raylway {shlex.join(_words_to_resume(sys.argv[1:], name_to_resume(error)))}"
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted", resume] if resumes else ["interrupted"]
    if isinstance(error, RecipeError):
        return [f"error: {problem}" for problem in error.problems]
    lines = [f"error: {line}" if number == 0 else f"  {line}" for number, line in enumerate(str(error).splitlines() or [repr(error)])]
    if isinstance(error, WorkerFailed):
        lines += [f"  worker {error.failure.rank}" + (f", {error.failure.frame}" if error.failure.frame else "")]
    elif code == WORKLOAD:
        lines = [f"error: {type(error).__name__}: {error}", *"".join(traceback.format_exception(error)).splitlines()[-20:]]
    if code in (WORKLOAD, MEMORY, CLUSTER) and resumes and is_resumable(error):
        lines += [resume]
    return lines


def _words_to_resume(words: list[str], name: str | None) -> list[str]:
    """The command that resumes: without --json and, once the run that --again began has a name, with that name in its place."""
    words = [word for word in words if word != "--json"]
    if name is None:
        return words
    return [word for word in words if word != "--again" and not word.startswith("name=")] + [f"name={name}"]


def _leave(code: int) -> NoReturn:
    """Exit at once: what Ray's and MLflow's threads still do at the end of a process takes seconds and serves nobody."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
