"""Run a verb as a command: its result on the screen or as JSON, its failure in a few lines, and the exit code of the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from pipelines import gc

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout; all else to stderr.")]
_ERROR_LINES = 25
_RESUMED = ("train", "sweep")


def tell(
    body: Callable[[Any], dict[str, Any]], as_json: bool, *, command: list[str], code: Callable[[dict[str, Any]], int] = lambda _: 0
) -> None:
    """Run a verb; show its result, or say in a few lines what went wrong and exit with the code for it."""
    gc.seldom()
    from pipelines.errors import code_of
    from pipelines.screen import Screen

    for stop in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a script's background process starts with it ignored
        signal.signal(stop, _interrupt)
    screen = Screen(as_json=as_json)
    try:
        result = body(screen)
    except (Exception, KeyboardInterrupt) as error:
        failed = code_of(error)
        from pipelines.tracking.provenance import redact

        lines = [redact(line) for line in _explain(error, failed, command)[:_ERROR_LINES]]
        typer.echo("\n".join(lines), err=True)
        screen.result({"status": "interrupted" if failed == 130 else "failed", "error": lines[0], "exit_code": failed})
        _leave(failed)
    else:
        screen.result(result)
        _leave(code(result))


def _interrupt(number: int, frame: Any) -> NoReturn:
    # where Ray's core worker is in the process, SIGTERM also goes through absl's handler of crashes, which sets an alarm that aborts the
    # process 3 s later (Ray 2.60): less than workers may need to leave a checkpoint
    signal.alarm(0)
    raise KeyboardInterrupt


def _explain(error: BaseException, code: int, command: list[str]) -> list[str]:
    import shlex
    import traceback

    from pipelines.errors import RecipeError, WorkerFailed, goes_on

    resume = f"resume with: raylway {shlex.join(command)}"
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted", resume] if command[0] in _RESUMED else ["interrupted"]
    if isinstance(error, RecipeError):
        return [f"error: {problem}" for problem in error.problems]
    lines = [f"error: {line}" if number == 0 else f"  {line}" for number, line in enumerate(str(error).splitlines() or [repr(error)])]
    if isinstance(error, WorkerFailed):
        lines += [f"  worker {error.failure.rank}" + (f", {error.failure.frame}" if error.failure.frame else "")]
    elif code == 10:
        lines = [f"error: {type(error).__name__}: {error}", *"".join(traceback.format_exception(error)).splitlines()[-20:]]
    if code in (10, 11, 12) and command[0] in _RESUMED and goes_on(error):
        lines += [resume]
    return lines


def _leave(code: int) -> None:
    """Exit at once: what Ray's and MLflow's threads still do at the end of a process takes seconds and serves nobody."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
