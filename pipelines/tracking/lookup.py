"""The runs and models that a command names: a run by its id, its name, `latest` or `best`; the runs of an experiment, the trials of a
sweep; a version of a registered model by its number or alias. The better runs first.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.errors import RecipeError, StorageError, TrackingError
from pipelines.run_record import RunFolder
from pipelines.tracking import provenance
from pipelines.tracking.client import HEADLINE, check, connect, first_line, is_mlflows, tracking_uri
from pipelines.tracking.registry import Registered
from workloads.base import DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion

URI = "models:/"
SWEEP, PARENT = "raylway.sweep", "mlflow.parentRunId"
OLD_LOG = " (promotions)"
"""Behind a model's name: the log of its promotions as earlier releases kept it; no model that one loads."""
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a thing that is not there; the second for an alias (3.17)."""
_FINISHED = "attributes.status = 'FINISHED'"
_TRAINED = f"{_FINISHED} and tags.stage = 'finished' and tags.weights_sha256 LIKE '%'"  # a sweep has no weights
_ID = re.compile(r"[0-9a-f]{32}")
_MOST, _LISTED, _NEWEST = 10_000, 20, 10


class Place(NamedTuple):
    """The MLflow and the storage folder that `storage=` and `track.uri=` name, as in a recipe."""

    uri: str
    root: Path
    others: list[str]
    """The other overrides."""
    stated: Mapping[str, str]
    """Those of the two settings that were given."""


def place(overrides: Sequence[str]) -> Place:
    """Part the overrides that say where runs are from the others. Raises RecipeError for what is no key.path=value."""
    if wrong := [override for override in overrides if not override.partition("=")[1]]:
        raise RecipeError(*(f"{override}: an override is written key.path=value" for override in wrong))
    pairs = [override.partition("=") for override in overrides]
    stated = {key: text for key, _, text in pairs if key in ("storage", "track.uri")}
    try:
        root = Path(stated.get("storage", "./runs")).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise RecipeError(f"storage: can be no path: {error}") from None
    others = [override for override in overrides if override.partition("=")[0] not in stated]
    return Place(tracking_uri(root, stated.get("track.uri")), root, others, stated)


@contextmanager
def opened(uri: str) -> Iterator[MlflowClient]:
    """A client of an MLflow that is there already. Raises StorageError where it is not, or while it cannot be reached."""
    check(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise StorageError(
            f"{uri.removeprefix('sqlite:///')}: no runs are kept there yet; storage=FOLDER or track.uri=URI says where they are"
        )
    try:
        yield connect(uri)
    except (RecipeError, StorageError, DataError):
        raise
    except Exception as error:
        if not is_mlflows(error):
            raise
        raise TrackingError(f"MLflow at {provenance.redact(uri)} cannot be used: {first_line(error)}") from error


@dataclass(frozen=True)
class TrackedRun:
    """A run as MLflow keeps it."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    began: float
    """Seconds since 1970."""
    ended: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Name of the prepared data it was trained on; empty for a run that others made."""
        return self.tags.get("data.fingerprint", "")

    def folder(self, root: Path) -> RunFolder | None:
        """The run's folder, where this machine reaches it: where the run says it is, else in the storage `root`."""
        told = Path(self.tags.get("raylway.folder", ""))
        return next((RunFolder(path) for path in (told, root / told.parent.name / told.name) if (path / "config.yaml").is_file()), None)


def named(client: MlflowClient, called: str, *, experiment: str | None = None) -> TrackedRun:
    """The run of an id or a name, `latest` (the newest finished one) or `best` (of its experiment); `experiment`: only of this one.

    Raises RecipeError, which lists the runs there are.
    """
    there = _ids(client, experiment)
    if called in ("latest", "best"):
        newest = search(client, _FINISHED, most=1, experiments=there)
        if not newest:
            raise RecipeError(f"{called}: no run has finished yet" + (f" in experiment {experiment}" if experiment else ""))
        return newest[0] if called == "latest" else _best(client, newest[0].experiment_id)
    found = find(client, called)
    if found is None or found.experiment_id not in there:
        names = list(dict.fromkeys(run.name for run in search(client, "", most=_MOST, experiments=there)))
        raise RecipeError(f"{called}: there is no such run{_those(called, names, 'runs, the newest first')}")
    return found


def find(client: MlflowClient, called: str) -> TrackedRun | None:
    """The run of an id, the newest of a name, or the newest finished one (`latest`); None if there is none."""
    from mlflow.exceptions import MlflowException

    if _ID.fullmatch(called):
        try:
            return _tracked(client.get_run(called))
        except MlflowException as error:
            if error.error_code in _MISSING:
                return None
            raise
    if called == "latest":
        return next(iter(search(client, _TRAINED, most=1)), None)
    quoted = called.replace("'", "")
    return next(iter(search(client, f"attributes.run_name = '{quoted}'", most=1)), None)


def search(client: MlflowClient, where: str, *, most: int = 1000, experiments: Sequence[str] | None = None) -> list[TrackedRun]:
    """The runs of all experiments (or these, by their ids) that MLflow's filter `where` lets through, the newest first."""
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(list(experiments), where, order_by=["attributes.start_time DESC"], max_results=most)
    return [_tracked(run) for run in found]


def newest_names(client: MlflowClient) -> list[str]:
    """The names of the newest runs."""
    return list(dict.fromkeys(run.name for run in search(client, "", most=_NEWEST)))


def of_experiment(client: MlflowClient, name: str) -> list[TrackedRun]:
    """The finished runs of an experiment, the newest first. Raises RecipeError, which lists the experiments there are."""
    found = search(client, _FINISHED, most=_MOST, experiments=_ids(client, name))
    if not found:
        raise RecipeError(f"experiment {name}: no run of it has finished yet")
    return found


def of_sweep(client: MlflowClient, name: str) -> list[TrackedRun]:
    """The trials of the newest sweep of this name, the newest first. Raises RecipeError, which lists the sweeps there are."""
    trials = search(client, f"tags.`{SWEEP}` != '' and tags.`{PARENT}` != ''", most=_MOST)
    found = [run for run in trials if run.tags[SWEEP] == name]
    if not found:
        raise RecipeError(f"{name}: there is no such sweep{_those(name, list(dict.fromkeys(run.tags[SWEEP] for run in trials)), 'sweeps')}")
    return [run for run in found if run.tags[PARENT] == found[0].tags[PARENT]]


def headline(run: TrackedRun) -> tuple[str, str] | None:
    """("max" or "min", metric) that a run is judged by; None for a run that does not say."""
    mode, _, metric = run.tags.get(HEADLINE, "").partition(" ")
    return (mode, metric) if metric and mode in ("max", "min") else None


def score(run: TrackedRun, rows: str = "test") -> float | None:
    """The headline metric on the test rows (or `val`, `best/val`), if the run has a number there."""
    judged = headline(run)
    value = run.metrics.get(f"{rows}/{judged[1]}") if judged else None
    return value if value is not None and math.isfinite(value) else None


def ranked(found: Sequence[TrackedRun], rows: str = "test") -> list[TrackedRun]:
    """Those that have a score, the best first; those judged by another metric than the first of them are left out."""
    scored = [run for run in found if score(run, rows) is not None]
    judged = headline(scored[0]) if scored else None
    comparable = [run for run in scored if headline(run) == judged]
    return sorted(comparable, key=lambda run: score(run, rows) or 0.0, reverse=judged is not None and judged[0] == "max")


def experiments(client: MlflowClient) -> dict[str, str]:
    """Experiments: id -> name."""
    return {each.experiment_id: each.name for each in client.search_experiments()}


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as the registry keeps it."""

    registered: Registered
    run_id: str
    model_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str

    @property
    def weights_sha256(self) -> str:
        """What was registered: a hash over every parameter and buffer (pipelines.training.checkpoint.weights_sha256)."""
        return self.tags.get("weights_sha256", "")

    @property
    def fingerprint(self) -> str:
        return self.tags.get("data.fingerprint", "")


def name_and_version(called: str, alias: str) -> tuple[str, str]:
    """(name, version or alias) of models:/…; `alias` where it says neither. Raises RecipeError."""
    rest = called.removeprefix(URI)
    name, at, which = rest.partition("@") if "@" in rest else rest.partition("/")
    if not name or (at and not which) or "/" in which:
        raise RecipeError(f"{called}: a registered model is written models:/name@alias or models:/name/3")
    if at == "/" and not which.isdigit():
        raise RecipeError(f"{called}: {which!r} is no version; write models:/{name}/3, or models:/{name}@{which} for an alias")
    return name, which or alias


def version(client: MlflowClient, name: str, which: str) -> Version:
    """The version of `name` that `which` says: a number or an alias. Raises RecipeError, saying what there is."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, which) if which.isdigit() else client.get_model_version_by_alias(name, which)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RecipeError(unknown_version(client, name, which)) from None
    if not which.isdigit():  # asked by alias, MLflow gives a version without its aliases
        found = client.get_model_version(name, found.version)
    return _version(found)


def version_of_run(client: MlflowClient, run_id: str) -> Version | None:
    """The newest version that was registered from a run, if any was."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    there = [one for one in found if not one.name.endswith(OLD_LOG)]
    newest = max(there, key=lambda one: int(one.version), default=None)
    return _version(client.get_model_version(newest.name, newest.version)) if newest else None


def models(client: MlflowClient) -> list[str]:
    """The registered models."""
    return sorted(model.name for model in client.search_registered_models() if not model.name.endswith(OLD_LOG))


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def has_version(client: MlflowClient, name: str, version: int) -> bool:
    return any(int(found.version) == version for found in client.search_model_versions(f"name = '{name}'"))


def unknown_version(client: MlflowClient, name: str, which: str) -> str:
    """What to tell of a version or an alias that is not there: those that are."""
    there = models(client)
    if name not in there:
        return f"there is no registered model {name!r}; there are: {', '.join(there) or 'none'}"
    numbers = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    known = [*(f"@{alias} ({number})" for alias, number in aliases(client, name).items()), f"versions {', '.join(map(str, numbers))}"]
    what = f"version {which}" if which.isdigit() else f"alias @{which}"
    return f"models:/{name} has no {what}; it has: {'; '.join(known)}"


def _ids(client: MlflowClient, experiment: str | None) -> list[str]:
    there = experiments(client)
    found = [number for number, name in there.items() if experiment in (None, name, number)]
    if not found:
        raise RecipeError(f"{experiment}: there is no such experiment{_those(str(experiment), sorted(there.values()), 'experiments')}")
    return found


def _best(client: MlflowClient, experiment_id: str) -> TrackedRun:
    judged = ranked(search(client, _FINISHED, most=_MOST, experiments=[experiment_id]))
    if not judged:
        raise RecipeError(f"best: no run of experiment {experiments(client)[experiment_id]} has finished with a score on test rows")
    return judged[0]


def _those(called: str, names: Sequence[str], kind: str) -> str:
    if not names:
        return f"; there are no {kind.partition(',')[0]}"
    near = difflib.get_close_matches(called, names, n=1, cutoff=0.6)
    shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")
    return (f"; did you mean {near[0]}?" if near else "") + f"; {kind}: {shown}"


def _tracked(run: MlflowRun) -> TrackedRun:
    info, data = run.info, run.data
    times = info.start_time / 1000, info.end_time / 1000 if info.end_time else None
    return TrackedRun(info.run_id, info.run_name, info.experiment_id, info.status, *times, data.params, data.metrics, data.tags)


def _version(found: ModelVersion) -> Version:
    source = found.source or ""
    if not source.startswith("models:/m-"):
        raise RecipeError(f"models:/{found.name}/{found.version}: was not registered by raylway, which alone can judge and load it")
    return Version(
        registered=Registered(found.name, int(found.version), f"models:/{found.name}/{found.version}"),
        run_id=found.run_id or "",
        model_id=source.removeprefix("models:/"),
        aliases=tuple(found.aliases),
        tags=dict(found.tags),
        description=found.description or "",
    )
