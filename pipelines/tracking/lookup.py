"""Find runs and models in MLflow by what a person calls them: a run by id, name, `latest` or `best`; the runs of an experiment, the trials
of a sweep; a version of a registered model by number or alias.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.errors import RecipeError, StorageError, TrackingError, nearest
from pipelines.run_record import RunFolder
from pipelines.tracking import provenance
from pipelines.tracking.client import HEADLINE, check, connect, first_line, is_mlflows, tracking_uri
from workloads.base import DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion

URI = "models:/"
SWEEP, PARENT = "raylway.sweep", "mlflow.parentRunId"
OLD_LOG = " (promotions)"
"""Suffix of the registered model in which earlier releases logged a model's promotions; it cannot be loaded."""
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for what does not exist; the second for an alias (3.17)."""
_FINISHED = "attributes.status = 'FINISHED'"
_TRAINED = f"{_FINISHED} and tags.stage = 'finished' and tags.weights_sha256 LIKE '%'"  # a sweep has no weights
_ID = re.compile(r"[0-9a-f]{32}")
_MOST, _LISTED, _NEWEST = 10_000, 20, 10


class Place(NamedTuple):
    """The MLflow address and the storage folder of a command."""

    uri: str
    root: Path
    others: list[str]
    """The overrides but `storage` and `track.uri`."""
    stated: Mapping[str, str]
    """`storage` and `track.uri`, where they were given."""


def place(overrides: Sequence[str]) -> Place:
    """Split `storage=` and `track.uri=` off the overrides. Raises RecipeError for an override that is no key.path=value."""
    if wrong := [override for override in overrides if not override.partition("=")[1]]:
        raise RecipeError(*(f"{override}: an override is written key.path=value" for override in wrong))
    pairs = [override.partition("=") for override in overrides]
    stated = {key: text for key, _, text in pairs if key in ("storage", "track.uri")}
    try:
        root = Path(stated.get("storage", "./runs")).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise RecipeError(f"storage: not a valid path: {error}") from None
    others = [override for override in overrides if override.partition("=")[0] not in stated]
    return Place(tracking_uri(root, stated.get("track.uri")), root, others, stated)


@contextmanager
def opened(uri: str) -> Iterator[MlflowClient]:
    """A client of an MLflow that exists. Raises StorageError where it does not, or cannot be reached meanwhile."""
    check(uri)
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():
        raise StorageError(f"{database}: no runs are kept there yet; storage=FOLDER or track.uri=URI says where they are")
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
    """A run in MLflow."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    began: float
    """Seconds since 1970."""
    ended: float | None
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Name of the prepared dataset it was trained on; empty for a run of another program."""
        return self.tags.get("data.fingerprint", "")

    def folder(self, root: Path) -> RunFolder | None:
        """The run's folder, if this machine has it: at the path that the run keeps, else below the storage `root`."""
        kept = Path(self.tags.get("raylway.folder", ""))
        return next((RunFolder(path) for path in (kept, root / kept.parent.name / kept.name) if (path / "config.yaml").is_file()), None)


def named(client: MlflowClient, called: str, *, experiment: str | None = None) -> TrackedRun:
    """The run with an id or a name, `latest` (the newest finished one) or `best` (of the latest's experiment), of all runs or of one
    `experiment`. Raises RecipeError, which lists the runs there are.
    """
    there = _ids(client, experiment)
    if called in ("latest", "best"):
        newest = search(client, _FINISHED, most=1, experiments=there)
        if not newest:
            raise RecipeError(f"{called}: no run has finished yet" + (f" in experiment {experiment}" if experiment else ""))
        if called == "latest":
            return newest[0]
        best = ranked(search(client, _FINISHED, most=_MOST, experiments=[newest[0].experiment_id]))
        if not best:
            name = experiments(client)[newest[0].experiment_id]
            raise RecipeError(f"best: no run of experiment {name} has finished with a score on test rows")
        return best[0]
    found = find(client, called)
    if found is None or found.experiment_id not in there:
        names = newest_names(client, most=_MOST, experiments=there)
        raise RecipeError(f"{called}: there is no such run{_known(called, names, 'runs, the newest first')}")
    return found


def find(client: MlflowClient, called: str) -> TrackedRun | None:
    """The run with an id, the newest with a name, or the newest that trained a model (`latest`); None if there is none."""
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
    """The runs that match MLflow's filter `where`, of all experiments or those with these ids, the newest first."""
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(list(experiments), where, order_by=["attributes.start_time DESC"], max_results=most)
    return [_tracked(run) for run in found]


def newest_names(client: MlflowClient, *, most: int = _NEWEST, experiments: Sequence[str] | None = None) -> list[str]:
    """The names of the newest runs, each once."""
    return list(dict.fromkeys(run.name for run in search(client, "", most=most, experiments=experiments)))


def of_experiment(client: MlflowClient, name: str) -> list[TrackedRun]:
    """The finished runs of an experiment, the newest first. Raises RecipeError, which lists the experiments there are."""
    found = search(client, _FINISHED, most=_MOST, experiments=_ids(client, name))
    if not found:
        raise RecipeError(f"experiment {name}: no run of it has finished yet")
    return found


def of_sweep(client: MlflowClient, name: str) -> list[TrackedRun]:
    """The trials of the newest sweep with this name, the newest first. Raises RecipeError, which lists the sweeps there are."""
    trials = search(client, f"tags.`{SWEEP}` != '' and tags.`{PARENT}` != ''", most=_MOST)
    found = [run for run in trials if run.tags[SWEEP] == name]
    if not found:
        sweeps = list(dict.fromkeys(run.tags[SWEEP] for run in trials))
        raise RecipeError(f"{name}: there is no such sweep{_known(name, sweeps, 'sweeps')}")
    return [run for run in found if run.tags[PARENT] == found[0].tags[PARENT]]


def headline(run: TrackedRun) -> tuple[str, str] | None:
    """(`max` or `min`, metric): the headline metric of a run; None for a run without one."""
    mode, _, metric = run.tags.get(HEADLINE, "").partition(" ")
    return (mode, metric) if metric and mode in ("max", "min") else None


def score(run: TrackedRun, rows: str = "test") -> float | None:
    """The headline metric on the test rows (or `val`, `best/val`); None where the run has no finite value."""
    judged = headline(run)
    value = run.metrics.get(f"{rows}/{judged[1]}") if judged else None
    return value if value is not None and math.isfinite(value) else None


def ranked(found: Sequence[TrackedRun], rows: str = "test") -> list[TrackedRun]:
    """The runs that have a score, the best first; runs with another headline metric than the first scored one are left out."""
    scored = [run for run in found if score(run, rows) is not None]
    judged = headline(scored[0]) if scored else None
    comparable = [run for run in scored if headline(run) == judged]
    return sorted(comparable, key=lambda run: score(run, rows) or 0.0, reverse=judged is not None and judged[0] == "max")


def experiments(client: MlflowClient) -> dict[str, str]:
    """The names of all experiments, by id."""
    return {each.experiment_id: each.name for each in client.search_experiments()}


def name_and_version(called: str, alias: str) -> tuple[str, str]:
    """(name, version or alias) of a models:/… URI, with `alias` where it has neither. Raises RecipeError."""
    rest = called.removeprefix(URI)
    name, at, which = rest.partition("@") if "@" in rest else rest.partition("/")
    if not name or (at and not which) or "/" in which:
        raise RecipeError(f"{called}: a registered model is written models:/name@alias or models:/name/3")
    if at == "/" and not which.isdigit():
        raise RecipeError(f"{called}: {which!r} is no version; write models:/{name}/3, or models:/{name}@{which} for an alias")
    return name, which or alias


def version(client: MlflowClient, name: str, which: str) -> ModelVersion:
    """The version of `name` with a number or an alias. Raises RecipeError, which lists those there are."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, which) if which.isdigit() else client.get_model_version_by_alias(name, which)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RecipeError(unknown_version(client, name, which)) from None


def version_of_run(client: MlflowClient, run_id: str) -> ModelVersion | None:
    """The newest version that was registered from a run; None if there is none."""
    found = [each for each in client.search_model_versions(f"run_id = '{run_id}'") if not each.name.endswith(OLD_LOG)]
    newest = max(found, key=lambda each: int(each.version), default=None)
    return client.get_model_version(newest.name, newest.version) if newest else None


def models(client: MlflowClient) -> list[str]:
    """The names of the registered models."""
    return sorted(model.name for model in client.search_registered_models() if not model.name.endswith(OLD_LOG))


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def versions(client: MlflowClient, name: str) -> list[int]:
    """The numbers of a model's versions, ascending."""
    return sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))


def unknown_version(client: MlflowClient, name: str, which: str) -> str:
    """The error message for a version or an alias that does not exist; it lists those that do."""
    there = models(client)
    if name not in there:
        return f"there is no registered model {name!r}; there are: {', '.join(there) or 'none'}"
    known = [f"@{alias} ({number})" for alias, number in aliases(client, name).items()]
    known.append(f"versions {', '.join(map(str, versions(client, name)))}")
    what = f"version {which}" if which.isdigit() else f"alias @{which}"
    return f"models:/{name} has no {what}; it has: {'; '.join(known)}"


def _ids(client: MlflowClient, experiment: str | None) -> list[str]:
    there = experiments(client)
    found = [number for number, name in there.items() if experiment in (None, name, number)]
    if not found:
        raise RecipeError(f"{experiment}: there is no such experiment{_known(str(experiment), sorted(there.values()), 'experiments')}")
    return found


def _known(called: str, names: Sequence[str], kind: str) -> str:
    """The end of an error message: the nearest name, and the names there are."""
    if not names:
        return f"; there are no {kind.partition(',')[0]}"
    shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")
    return f"{nearest(called, names)}; {kind}: {shown}"


def _tracked(run: MlflowRun) -> TrackedRun:
    info, data = run.info, run.data
    times = info.start_time / 1000, info.end_time / 1000 if info.end_time else None
    return TrackedRun(info.run_id, info.run_name, info.experiment_id, info.status, *times, data.metrics, data.tags)
