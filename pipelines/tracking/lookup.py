"""The runs that a command names: an id, a name, `latest`, `best`; all of an experiment; the trials of a sweep. The better ones first."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml

from pipelines.errors import RecipeError, StorageError
from pipelines.tracking import provenance, runs
from pipelines.tracking.leaderboard import HEADLINE
from pipelines.tracking.runs import Kept
from pipelines.tracking.shipper import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

SWEEP, PARENT = "raylway.sweep", "mlflow.parentRunId"
_FINISHED = "attributes.status = 'FINISHED'"
_MOST, _LISTED = 10_000, 20


def place(overrides: Sequence[str]) -> tuple[str, Path, list[str]]:
    """(tracking URI, storage folder, the other overrides): `storage=` and `track.uri=` say where runs are, as in a recipe.

    Raises RecipeError for what is no key.path=value.
    """
    if wrong := [override for override in overrides if not override.partition("=")[1]]:
        raise RecipeError(*(f"{override}: an override is written key.path=value" for override in wrong))
    given = {key: text for key, _, text in (override.partition("=") for override in overrides)}
    try:
        root = Path(given.get("storage", "./runs")).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise RecipeError(f"storage: can be no path: {error}") from None
    others = [override for override in overrides if override.partition("=")[0] not in ("storage", "track.uri")]
    return tracking_uri(root, given.get("track.uri")), root, others


def named(client: MlflowClient, called: str, *, experiment: str | None = None) -> Kept:
    """The run of an id or a name, `latest` (the newest finished one) or `best` (of its experiment); `experiment`: only of this one.

    Raises RecipeError, which lists the runs there are.
    """
    there = _ids(client, experiment)
    if called in ("latest", "best"):
        newest = runs.search(client, _FINISHED, most=1, experiments=there)
        if not newest:
            raise RecipeError(f"{called}: no run has finished yet" + (f" in experiment {experiment}" if experiment else ""))
        return newest[0] if called == "latest" else _best(client, newest[0].experiment_id)
    found = runs.find(client, called)
    if found is None or found.experiment_id not in there:
        names = list(dict.fromkeys(run.name for run in runs.search(client, "", most=_MOST, experiments=there)))
        raise RecipeError(f"{called}: there is no such run{_those(called, names, 'runs, the newest first')}")
    return found


def of_experiment(client: MlflowClient, name: str) -> list[Kept]:
    """The finished runs of an experiment, the newest first. Raises RecipeError, which lists the experiments there are."""
    found = runs.search(client, _FINISHED, most=_MOST, experiments=_ids(client, name))
    if not found:
        raise RecipeError(f"experiment {name}: no run of it has finished yet")
    return found


def of_sweep(client: MlflowClient, name: str) -> list[Kept]:
    """The trials of the newest sweep of this name, the newest first. Raises RecipeError, which lists the sweeps there are."""
    trials = runs.search(client, f"tags.`{SWEEP}` != '' and tags.`{PARENT}` != ''", most=_MOST)
    found = [run for run in trials if run.tags[SWEEP] == name]
    if not found:
        raise RecipeError(f"{name}: there is no such sweep{_those(name, list(dict.fromkeys(run.tags[SWEEP] for run in trials)), 'sweeps')}")
    return [run for run in found if run.tags[PARENT] == found[0].tags[PARENT]]


def headline(run: Kept) -> tuple[str, str] | None:
    """("max" or "min", metric) that a run is judged by; None for a run that does not say."""
    mode, _, metric = run.tags.get(HEADLINE, "").partition(" ")
    return (mode, metric) if metric and mode in ("max", "min") else None


def score(run: Kept, rows: str = "test") -> float | None:
    """The headline metric on the test rows (or `val`, `best/val`), if the run has a number there."""
    judged = headline(run)
    value = run.metrics.get(f"{rows}/{judged[1]}") if judged else None
    return value if value is not None and math.isfinite(value) else None


def ranked(found: Sequence[Kept], rows: str = "test") -> list[Kept]:
    """Those that have a score, the best first; those judged by another metric than the first of them are left out."""
    scored = [run for run in found if score(run, rows) is not None]
    judged = headline(scored[0]) if scored else None
    comparable = [run for run in scored if headline(run) == judged]
    return sorted(comparable, key=lambda run: score(run, rows) or 0.0, reverse=judged is not None and judged[0] == "max")


def config(client: MlflowClient, run: Kept) -> dict[str, Any]:
    """The settings that a run was given. Raises StorageError where they are missing."""
    text = runs.text(client, run.run_id, "config.yaml")
    if text is None:
        raise StorageError(f"{run.name}: its config.yaml is not in MLflow, so it was not trained by raylway, or not to its start")
    return yaml.safe_load(text)


def versions(client: MlflowClient, run: Kept) -> dict[str, str]:
    """The versions of Python and of packages that a run was made with, as far as they were noted."""
    return json.loads(runs.text(client, run.run_id, "versions.json") or "{}")


def history(client: MlflowClient, run: Kept, metric: str) -> dict[int, float]:
    """A metric's values by step."""
    return {point.step: point.value for point in client.get_metric_history(run.run_id, metric)}


def experiments(client: MlflowClient) -> dict[str, str]:
    """Experiments: id -> name."""
    return {each.experiment_id: each.name for each in client.search_experiments()}


def compare_page(uri: str, found: Sequence[Kept]) -> str:
    """Address of MLflow's page that lays runs side by side."""
    ids = json.dumps([run.run_id for run in found])
    places = json.dumps(sorted({run.experiment_id for run in found}))
    return f"{server(uri)}/#/compare-runs?runs={quote(ids)}&experiments={quote(places)}&workflowType=machine_learning"


def server(uri: str) -> str:
    """Where the pages of MLflow are; for a database, where `raylway ui` shows them."""
    return provenance.redact(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


def _ids(client: MlflowClient, experiment: str | None) -> list[str]:
    there = experiments(client)
    found = [number for number, name in there.items() if experiment in (None, name, number)]
    if not found:
        raise RecipeError(f"{experiment}: there is no such experiment{_those(str(experiment), sorted(there.values()), 'experiments')}")
    return found


def _best(client: MlflowClient, experiment_id: str) -> Kept:
    judged = ranked(runs.search(client, _FINISHED, most=_MOST, experiments=[experiment_id]))
    if not judged:
        raise RecipeError(f"best: no run of experiment {experiments(client)[experiment_id]} has finished with a score on test rows")
    return judged[0]


def _those(called: str, names: Sequence[str], kind: str) -> str:
    if not names:
        return f"; there are no {kind.partition(',')[0]}"
    near = difflib.get_close_matches(called, names, n=1, cutoff=0.6)
    shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")
    return (f"; did you mean {near[0]}?" if near else "") + f"; {kind}: {shown}"
