"""Track: list what MLflow does not have yet of the runs of a storage, and send it.

Every run's folder keeps what the run is, how it ended and how far it was sent (run_record.py). So nothing here trains, and what is sent
twice is in MLflow once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines import run_record
from pipelines.config import trained_with
from pipelines.data import dataset as prepared
from pipelines.data.dataset import Dataset
from pipelines.data.store import store_of
from pipelines.errors import RecipeError, StorageError
from pipelines.publish import deliver
from pipelines.run_record import RunFolder
from pipelines.run_states import ABOUT, CONCLUDED, CONFIG, COST, ENDING, FINGERPRINT, UNPROMOTED, Concluded, Cost
from pipelines.screen import Screen
from pipelines.tracking import lookup, provenance
from pipelines.tracking.client import check
from pipelines.tracking.shipper import OUTRIGHT, Tracker
from workloads.base import DataError

_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, as its folder keeps it."""

    run: str
    """As a path below the storage."""
    status: str
    """running, trained (all but sent), finished, failed, killed, or stopped (nobody could say how)."""
    values: int
    unsent: int
    """Of the values in the journal."""
    sent: bool
    """True where MLflow has all of them, and the end of the run."""
    resume: str
    """The command that resumes it; empty for a finished one."""


def track(called: str | None, settings: Sequence[str], *, sync: bool, screen: Screen) -> dict[str, Any]:
    """The runs of a storage, or the one that `called` names, and what MLflow does not have of them; with `sync` it is sent first.

    Raises RecipeError for an unknown run. A run that cannot be sent is reported, and the others are sent.
    """
    uri, root, others, stated = lookup.place(settings)
    if others:
        raise RecipeError(*(f"{other}: no setting of this command; there are storage=, track.uri=" for other in others))
    folders = _called(root, called)
    troubles = _sent(folders, root, uri, stated.get("track.uri"), screen) if sync else {}
    states = [_state(folder, root) for folder in folders]
    listed = [state for state in states if not state.sent or state.run.count("/") == 1]  # the trials of a sweep are many
    left = sum(not state.sent for state in states)
    screen.table(f"{root}: {left} of {len(states)} runs not all sent", *_columns_and_rows(listed))
    for run, trouble in troubles.items():
        screen.say(f"{run}: {trouble}")
    if left and not sync:
        command = shlex.join(["raylway", "track", "--sync", *([called] if called else []), *settings])
        screen.say(f"to send what is missing: {command}")
    return {"runs": [asdict(state) | {"error": troubles.get(state.run)} for state in states], "unsent": left, "storage": str(root)}


def unpromoted(called: str | None, settings: Sequence[str]) -> Iterator[tuple[RunFolder, Path, str]]:
    """(folder, storage, MLflow's address) of each run of `track` whose model was registered, and not asked to be promoted yet."""
    uri, root, _, stated = lookup.place(settings)
    for folder in _called(root, called):
        if folder.read(UNPROMOTED) and not folder.busy():
            yield folder, root, _address(folder, uri, stated.get("track.uri"))


def _called(root: Path, called: str | None) -> list[RunFolder]:
    """The runs' folders, each sweep before its trials."""
    there = [RunFolder(path.parent) for pattern in ("*/*/about.json", "*/*/*/about.json") for path in root.glob(pattern)]
    there.sort(key=lambda folder: folder.path)
    if called is None:
        return there
    meant = Path(called).expanduser()
    own = {folder.path for folder in there if called in (folder.path.name, _name(folder, root)) or folder.path == meant.resolve()}
    found = [folder for folder in there if own & {folder.path, folder.path.parent}]
    if not found:
        names = ", ".join(_name(folder, root) for folder in there if _name(folder, root).count("/") == 1)
        raise RecipeError(f"{called}: there is no such run in {root}; there are: {names or 'none'}")
    return found


def _state(folder: RunFolder, root: Path) -> RunStatus:
    ending, sent = folder.read(ENDING), run_record.sent(folder)
    values, unsent = run_record.unsent(folder)
    if folder.busy():
        status, reported = "running", True
    elif folder.read(CONCLUDED):
        status, reported = "trained", False
    else:
        status, reported = (ending.status.lower(), sent.closed == ending.status) if ending else ("stopped", sent.closed == "KILLED")
    resume = "" if status in ("finished", "running") else shlex.join(run_record.about(folder).command)
    return RunStatus(_name(folder, root), status, values, unsent, reported and not unsent, resume)


def _sent(folders: Sequence[RunFolder], root: Path, uri: str, given: str | None, screen: Screen) -> dict[str, str]:
    """Send what is missing; run -> why it could not be."""
    troubles: dict[str, str] = {}
    refused: dict[str, StorageError] = {}
    for top, trials in _missing(folders, root):
        where = ""
        try:
            where = _address(top, uri, given)
            if where in refused:
                raise refused[where]
            try:
                check(where)
            except StorageError as error:
                refused[where] = error
                raise
            _send(top, trials, root, where, screen)
        except (StorageError, DataError, RecipeError) as error:
            troubles[_name(top, root)] = provenance.redact(str(error)).partition("\n")[0]
    return troubles


def _missing(folders: Sequence[RunFolder], root: Path) -> Iterator[tuple[RunFolder, list[RunFolder]]]:
    """The runs of which something is to be sent, each with those below it of which something is."""
    found: dict[RunFolder, list[RunFolder]] = {}
    for folder in folders:
        state = _state(folder, root)
        if not state.sent and state.status != "running":
            above = RunFolder(folder.path.parent)
            trial = above.path_of(ABOUT).exists()
            found.setdefault(above if trial else folder, []).extend([folder] if trial else [])
    yield from found.items()


def _address(folder: RunFolder, uri: str, given: str | None) -> str:
    """The tracking address of a run: the given one, else the one it was sent to before."""
    before = run_record.sent(folder).uri
    if given or not before or before == provenance.redact(uri):
        return given or uri
    if "***" in before:
        raise StorageError(f"it was tracked at {before}; say so with track.uri=, password included, or by MLFLOW_TRACKING_URI")
    return before


def _send(top: RunFolder, trials: Sequence[RunFolder], root: Path, uri: str, screen: Screen) -> None:
    with top.locked("driver", wait_seconds=0):
        tracker = Tracker(uri, top, root, run_record.about(top))
        tracker.flush(patience_seconds=_PATIENCE_SECONDS)
        for trial in trials:
            _end(Tracker(uri, trial, root, run_record.about(trial), parent=tracker))
        if done := top.read(CONCLUDED):
            _deliver(tracker, root, done, screen)
        elif top.read(ENDING) or not top.ledger.exists():
            _end(tracker)
        else:
            raise StorageError("all is sent; the sweep was stopped in the middle, and the command that began it goes on")


def _end(tracker: Tracker) -> None:
    if tracker.folder.read(ENDING) is None:
        tracker.end("KILLED", {"cause": OUTRIGHT})
    tracker.insist(tracker.send_page, patience_seconds=_PATIENCE_SECONDS)
    tracker.insist(tracker.send_ending, patience_seconds=_PATIENCE_SECONDS)


def _deliver(tracker: Tracker, root: Path, done: Concluded, screen: Screen) -> None:
    """Send, register and close a run that is trained."""
    folder = tracker.folder
    run = trained_with(folder.read(CONFIG) or "")
    if run.root != root:  # it was moved, or its storage is named from another folder
        run = run.model_copy(update={"storage": str(root)})
    cost = folder.read(COST) or Cost()

    def dataset() -> Dataset:
        return prepared.proven(store_of(run.data, run.root), folder.read(FINGERPRINT) or "")

    deliver(run, tracker, done, screen, dataset=dataset, cost=lambda: cost, patience_seconds=_PATIENCE_SECONDS)


def _name(folder: RunFolder, root: Path) -> str:
    return str(folder.path.relative_to(root))


def _columns_and_rows(states: Sequence[RunStatus]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for state in states:
        told = "all" if state.sent else f"all but {state.unsent:,} values" if state.unsent else "all but its end"
        rows.append([state.run, state.status, f"{state.values:,}", told, state.resume])
    return ["run", "status", "values", "MLflow has", "goes on with"], rows
