"""The errors that a person sees: one sentence, a hint, and the exit code of the command line."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workloads.base import DataError

RECIPE, VERIFICATION, WORKLOAD, MEMORY, CLUSTER, DATA, DIVERGED, INTERRUPTED = 2, 4, 10, 11, 12, 13, 14, 130

_OURS = {Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent / "cluster"}


class RecipeError(Exception):
    """The recipe or the command is wrong. `problems` lists all that was found, one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StorageError(Exception):
    """The storage or the tracking server cannot be used as the recipe asks."""


class TrackingError(StorageError):
    """MLflow cannot be reached, or does not take what it is sent; it may later."""


_RESUMABLE = "run the same again to resume from what is done"
_RESUMED_AS = "to resume this run, leave out --again and set name="


class Diverged(ArithmeticError):
    """The loss or the weights are no longer finite."""


@dataclass(frozen=True)
class Failure:
    """An error of a worker in plain strings, so that it can cross processes."""

    code: int
    rank: int
    at: float
    error: str
    frame: str = ""
    trace: str = ""


class WorkerFailed(Exception):
    """A worker's code raised. The constructor takes what `__reduce__` gives, so it survives pickling between processes."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure

    def __reduce__(self) -> tuple[type[WorkerFailed], tuple[Failure]]:
        return WorkerFailed, (self.failure,)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that proposes the known name most like a wrong one; empty where none is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def cause_of(error: BaseException) -> str:
    """An error as one text: its sentence, and its kind too where a workload's own code raised it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if code_of(error) == WORKLOAD and not isinstance(error, WorkerFailed):
        return f"{type(error).__name__}: {error}"
    return str(error) or type(error).__name__


def mark_resumable(error: BaseException) -> None:
    """Note on an error that the same command resumes from work already done."""
    error.add_note(_RESUMABLE)


def is_resumable(error: BaseException) -> bool:
    """True if the same command resumes rather than starts anew."""
    return _RESUMABLE in getattr(error, "__notes__", ())


@contextmanager
def resumed_as(name: str | None) -> Iterator[None]:
    """Note on an error that leaves the block with which name= the interrupted run is resumed; None where no name= is needed."""
    try:
        yield
    except BaseException as error:
        if name is not None:
            error.add_note(f"{_RESUMED_AS}{name}")
        raise


def name_to_resume(error: BaseException) -> str | None:
    """The name= that `resumed_as` noted; None where the command that failed resumes as it is."""
    return next((note.removeprefix(_RESUMED_AS) for note in getattr(error, "__notes__", ()) if note.startswith(_RESUMED_AS)), None)


def code_of(error: BaseException) -> int:
    """The exit code that DESIGN §7 gives to an error."""
    if isinstance(error, WorkerFailed):
        return error.failure.code
    for kind, code in ((KeyboardInterrupt, INTERRUPTED), (RecipeError, RECIPE), (DataError, DATA), (Diverged, DIVERGED)):
        if isinstance(error, kind):
            return code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return MEMORY
    # Dist…Error: another worker is gone; it may be a while until Ray knows of a node that died, and the others' sums fail at once
    cluster = {"ClusterError", "WorkerLost", "DistBackendError", "DistNetworkError"} & {kind.__name__ for kind in type(error).__mro__}
    if cluster or isinstance(error, (StorageError, OSError)) or "gloo/transport" in str(error):
        return CLUSTER
    return WORKLOAD


def describe(error: Exception, rank: int, at: float) -> Failure:
    """A worker's exception as a Failure: the sentence, the innermost frame of the user's own code, the whole trace."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _inside_libraries(frame.filename)]
    last = frames[-1] if frames else None
    return Failure(
        code=code_of(error),
        rank=rank,
        at=at,
        error=cause_of(error),
        frame=f"{last.filename}:{last.lineno} in {last.name}: {last.line}" if last else "",
        trace="".join(traceback.format_exception(error)),
    )


def _inside_libraries(filename: str) -> bool:
    path = Path(filename).resolve()
    return "site-packages" in path.parts or "<" in filename or any(parent in _OURS for parent in path.parents)
