"""Two verbs one after the other, for the command line and the Python API alike: no verb knows another."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Loaded, load, trained_with
from pipelines.errors import StorageError, TrackingError, mark_resumable, resumed_as
from pipelines.run_record import RunFolder
from pipelines.run_states import CONFIG, UNPROMOTED
from pipelines.tracking.client import tracking_uri

if TYPE_CHECKING:
    from pipelines.run_settings import Run
    from pipelines.screen import Screen

_AGAIN_SECONDS = 2.0


def train_and_promote(loaded: Loaded, *, again: bool = False, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Train what `loaded` describes and promote the model if it is the first of its name: the JSON of `raylway train`."""
    from pipelines.verbs.train import train

    result = train(loaded, again=again, screen=screen, began=began)
    with resumed_as(result["run_name"] if again else None):
        _promote(loaded.run, result["run_name"], screen)
    return result


def sweep_and_promote(
    recipe: str, overrides: Sequence[str], *, more: int | None = None, screen: Screen, began: float | None = None
) -> dict[str, Any]:
    """Search, and promote the confirmed model if it is the first of its name: the JSON of `raylway sweep`."""
    run = load(recipe, overrides).run
    from pipelines.verbs.sweep import sweep

    result = sweep(recipe, overrides, more=more, screen=screen, began=began)
    _promote(run, result["sweep_id"], screen)
    return result


def words_of_search(space: Iterable[str], trials: str | None) -> tuple[list[str], int | None]:
    """(`SETTING=DISTRIBUTION` and a number of trials as settings of a search, None or so many trials more for "+N")."""
    more = int(trials[1:]) if trials and trials[0] == "+" and trials[1:].isdigit() else None
    words = [f"sweep.space.{each}" for each in space]
    return [*words, f"sweep.trials={trials}"] if trials and more is None else words, more


def track_and_promote(name: str | None, settings: Sequence[str], *, sync: bool, screen: Screen) -> dict[str, Any]:
    """Send what MLflow has not, and promote the models that were registered by it: the JSON of `raylway track`."""
    from pipelines.verbs.track import track, unpromoted

    result = track(name, settings, sync=sync, screen=screen)
    for folder, root, uri in unpromoted(name, settings) if sync else ():
        try:
            promote_registered(folder, storage=root, uri=uri, patience_seconds=0, screen=screen)
        except StorageError as error:
            screen.say(f"{folder.path.name}: {error}")
    return result


def _promote(run: Run, name: str, screen: Screen) -> None:
    folder, uri = RunFolder(run.root / run.experiment / name), tracking_uri(run.root, run.track.uri)
    promote_registered(folder, storage=run.root, uri=uri, patience_seconds=run.track.wait_seconds, screen=screen)


def promote_registered(folder: RunFolder, *, storage: Path, uri: str, patience_seconds: float, screen: Screen) -> None:
    """Promote the model that the run or sweep in `folder` has just registered, if it is the first of its name; once.

    Raises TrackingError if MLflow cannot be reached for so long; the same command then asks again.
    """
    deadline = time.monotonic() + patience_seconds
    while model := folder.read(UNPROMOTED):
        judged = trained_with(folder.read(CONFIG) or "").promote.has_floors
        try:
            _promote_first(model, judged=judged, storage=storage, uri=uri, screen=screen)
            folder.remove(UNPROMOTED)
        except TrackingError as error:
            if time.monotonic() > deadline:
                mark_resumable(error)
                raise
            time.sleep(_AGAIN_SECONDS)


def _promote_first(model: Mapping[str, Any], *, judged: bool, storage: Path, uri: str, screen: Screen) -> None:
    if judged:  # what judges is imported only where there is something to judge
        from pipelines.tracking.registry import Registered
        from pipelines.verbs.promote import promote_first

        promote_first(Registered(**model), storage=str(storage), uri=uri, screen=screen)
    else:
        from pipelines.tracking import lookup, promotions

        with lookup.opened(uri) as client:
            promotions.promote_first(client, model["name"], model["version"], storage=storage)
