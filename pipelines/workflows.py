"""Two verbs one after the other, for the command line and the Python API alike: no verb knows another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.config import Loaded, load
from pipelines.errors import StorageError, resumed_as
from pipelines.run_record import RunFolder
from pipelines.run_settings import Run
from pipelines.run_states import UNPROMOTED
from pipelines.tracking.client import tracking_uri

if TYPE_CHECKING:
    from pipelines.screen import Screen


def train_and_promote(loaded: Loaded, *, again: bool = False, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Train what `loaded` describes and promote the model if it is the first of its name: the JSON of `raylway train`."""
    from pipelines.verbs.train import train

    result = train(loaded, again=again, screen=screen, began=began)
    with resumed_as(result["run_name"] if again else None):
        _promote_first(loaded.run, result["run_name"], screen)
    return result


def sweep_and_promote(
    recipe: str, overrides: Sequence[str], *, more: int | None = None, screen: Screen, began: float | None = None
) -> dict[str, Any]:
    """Search, and promote the confirmed model if it is the first of its name: the JSON of `raylway sweep`."""
    run = load(recipe, overrides).run
    from pipelines.verbs.sweep import sweep

    result = sweep(recipe, overrides, more=more, screen=screen, began=began)
    _promote_first(run, result["sweep_id"], screen)
    return result


def track_and_promote(name: str | None, settings: Sequence[str], *, sync: bool, screen: Screen) -> dict[str, Any]:
    """Send what MLflow has not, and promote the models that were registered by it: the JSON of `raylway track`."""
    from pipelines.verbs.track import track, unpromoted

    result = track(name, settings, sync=sync, screen=screen)
    for folder, root, uri in unpromoted(name, settings) if sync else ():
        try:
            _promote_registered(folder, storage=str(root), uri=uri, patience_seconds=0, screen=screen)
        except StorageError as error:
            screen.say(f"{folder.path.name}: {error}")
    return result


def _promote_first(run: Run, name: str, screen: Screen) -> None:
    folder = RunFolder(run.root / run.experiment / name)
    uri = tracking_uri(run.root, run.track.uri)
    _promote_registered(folder, storage=run.storage, uri=uri, patience_seconds=run.track.wait_seconds, screen=screen)


def _promote_registered(folder: RunFolder, *, storage: str, uri: str, patience_seconds: float, screen: Screen) -> None:
    """Promote the model that the run in `folder` has registered, once, if it is the first of its name."""
    if folder.read(UNPROMOTED):  # what promotes is imported only then
        from pipelines.verbs.promote import promote_registered

        promote_registered(folder, storage=storage, uri=uri, patience_seconds=patience_seconds, screen=screen)
