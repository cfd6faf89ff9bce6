"""Find runs in MLflow by what a person calls them (an id, a name, `latest`, `best`), and read what was kept with them."""

from __future__ import annotations

import difflib
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipelines.errors import RecipeError, StorageError
from pipelines.folder import RunFolder
from pipelines.tracking import provenance
from pipelines.tracking.leaderboard import HEADLINE
from pipelines.tracking.mlflow import FOLDER, check, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Theirs

SWEEP, PARENT = "raylway.sweep", "mlflow.parentRunId"
_MOST, _LISTED = 50_000, 20
_ID = re.compile(r"[0-9a-f]{32}")
_DATABASE = "sqlite:///"


@dataclass(frozen=True)
class Tracked:
    """A run as MLflow has it; times in seconds since 1970."""

    run_id: str
    name: str
    experiment_id: str
    experiment: str
    status: str
    began: float
    ended: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, where this machine reaches it."""
        kept = self.tags.get(FOLDER)
        return RunFolder(Path(kept)) if kept and Path(kept).is_dir() else None

    @property
    def headline(self) -> tuple[Literal["max", "min"], str] | None:
        """Which direction of which metric is better; None for a run that does not say."""
        mode, _, metric = self.tags.get(HEADLINE, "").partition(" ")
        return (mode, metric) if metric and mode in ("max", "min") else None  # type: ignore[return-value]

    def score(self, rows: str = "test") -> float | None:
        """The headline metric on the test rows (or `val`, `best/val`), if the run has one."""
        return self.metrics.get(f"{rows}/{self.headline[1]}") if self.headline else None


class Runs:
    """The runs that MLflow keeps at `uri`. Every method raises StorageError where MLflow does not answer."""

    def __init__(self, uri: str) -> None:
        """Raises StorageError if there is nothing at `uri`: to look must not make a database."""
        check(uri)
        path = Path(uri.removeprefix(_DATABASE).partition("?")[0])
        if uri.startswith(_DATABASE) and not path.is_file():
            raise StorageError(f"{path}: no runs are kept there yet; storage= or track.uri= says where to look")
        self.uri = uri
        with _reached(uri):
            self.client: MlflowClient = connect(uri)
            self._experiments = {each.experiment_id: each.name for each in self.client.search_experiments()}

    def find(self, called: str, *, experiment: str | None = None) -> Tracked:
        """The run that `called` names: a run's id, its name, `latest`, or `best` (of `experiment`, else of the newest run's experiment).

        Of several runs of one name it is the newest. Raises RecipeError, which lists the runs that exist.
        """
        there = self._ids(experiment)
        if called == "latest":
            return self._first(there, called)
        if called == "best":
            newest = self._first(there, called)
            return self._best(newest.experiment_id, newest.experiment)
        if _ID.fullmatch(called):
            from mlflow.exceptions import MlflowException

            with _reached(self.uri):
                try:
                    return self._tracked(self.client.get_run(called))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
            raise RecipeError(self._unknown(called, there))
        if "'" in called or not (found := self._search(there, f"attributes.run_name = '{called}'", most=1)):
            raise RecipeError(self._unknown(called, there))
        return found[0]

    def of_experiment(self, name: str, *, most: int = _MOST) -> list[Tracked]:
        """The runs of an experiment, the newest first. Raises RecipeError for an unknown one."""
        return self._search(self._ids(name), "", most=most)

    def of_sweep(self, name: str) -> list[Tracked]:
        """The trials of the newest sweep of this name, the newest first. Raises RecipeError, which lists the sweeps there are."""
        found = [] if "'" in name else self._search(self._ids(None), f"tags.`{SWEEP}` = '{name}' and tags.`{PARENT}` != ''")
        if not found:
            sweeps = sorted({run.tags[SWEEP] for run in self._search(self._ids(None), f"tags.`{SWEEP}` != ''")})
            raise RecipeError(f"{name}: there is no such sweep at {provenance.redact(self.uri)}{_those(name, sweeps, 'sweeps')}")
        return [run for run in found if run.tags[PARENT] == found[0].tags[PARENT]]

    def text(self, run: Tracked, name: str) -> str | None:
        """The text of one of the run's artifacts; None if it has none of that name."""
        with tempfile.TemporaryDirectory(prefix="raylway-") as scratch:
            path = self.artifact(run, name, into=Path(scratch))
            return path.read_text() if path else None

    def artifact(self, run: Tracked, name: str, *, into: Path) -> Path | None:
        """An artifact as a file of this machine, in the folder `into`; None if the run has none of that name."""
        folder, _, _ = name.rpartition("/")
        with _reached(self.uri):
            if name not in {file.path for file in self.client.list_artifacts(run.run_id, folder or None)}:
                return None
            return Path(self.client.download_artifacts(run.run_id, name, str(into)))

    def config(self, run: Tracked) -> dict[str, Any]:
        """The settings that the run was given, as its config.yaml has them. Raises StorageError where that is missing."""
        text = self.text(run, "config.yaml")
        if text is None:
            raise StorageError(f"{run.name}: its config.yaml is missing in MLflow, so nobody can tell what it was")
        return yaml.safe_load(text)

    def versions(self, run: Tracked) -> dict[str, str]:
        """The versions of Python and packages that the run was made with, as far as they were noted."""
        return json.loads(self.text(run, "versions.json") or "{}")

    def page(self, run: Tracked) -> str:
        """Address of the run's page."""
        return f"{server(self.uri)}/#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"

    def _ids(self, experiment: str | None) -> list[str]:
        if experiment is None:
            return list(self._experiments)
        found = [number for number, name in self._experiments.items() if experiment in (name, number)]
        if not found:
            names = sorted(self._experiments.values())
            raise RecipeError(
                f"{experiment}: there is no such experiment at {provenance.redact(self.uri)}{_those(experiment, names, 'experiments')}"
            )
        return found

    def _first(self, experiments: Sequence[str], called: str) -> Tracked:
        if found := self._search(experiments, "", most=1):
            return found[0]
        raise RecipeError(f"{called}: there is no run yet at {provenance.redact(self.uri)}")

    def _best(self, experiment_id: str, experiment: str) -> Tracked:
        judged = ranked(self._search([experiment_id], "attributes.status = 'FINISHED'"))
        if not judged:
            raise RecipeError(f"best: no run of experiment {experiment} has finished with a score on test rows")
        return judged[0]

    def _search(self, experiments: Sequence[str], condition: str, *, most: int = _MOST) -> list[Tracked]:
        found: list[Tracked] = []
        token = None
        while experiments and len(found) < most:
            with _reached(self.uri):
                page = self.client.search_runs(
                    list(experiments),
                    condition,
                    max_results=min(1000, most - len(found)),
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            found += [self._tracked(run) for run in page]
            token = page.token
            if not token:
                break
        return found

    def _tracked(self, run: Theirs) -> Tracked:
        info, data = run.info, run.data
        ended = info.end_time and info.end_time / 1000
        return Tracked(
            run_id=info.run_id,
            name=info.run_name,
            experiment_id=info.experiment_id,
            experiment=self._experiments.get(info.experiment_id, info.experiment_id),
            status=info.status,
            began=info.start_time / 1000,
            ended=ended or None,
            params=data.params,
            metrics=data.metrics,
            tags=data.tags,
        )

    def _unknown(self, called: str, experiments: Sequence[str]) -> str:
        names = list(dict.fromkeys(run.name for run in self._search(experiments, "", most=1000)))
        return f"{called}: there is no such run at {provenance.redact(self.uri)}{_those(called, names, 'runs')}"


def ranked(runs: Sequence[Tracked], rows: str = "test") -> list[Tracked]:
    """The runs that have a score, the best first; runs that are judged by another metric than the newest of them are left out."""
    scored = [run for run in runs if (score := run.score(rows)) is not None and math.isfinite(score)]
    if not scored:
        return []
    headline = max(scored, key=lambda run: run.began).headline
    comparable = [run for run in scored if run.headline == headline]
    return sorted(comparable, key=lambda run: run.score(rows) or 0.0, reverse=headline is not None and headline[0] == "max")


def server(uri: str) -> str:
    """Where the pages of MLflow are; for a database, where `raylway ui` shows them."""
    return provenance.redact(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


@contextmanager
def _reached(uri: str) -> Iterator[None]:
    """What MLflow, its database or the network raise, as one clear sentence."""
    try:
        yield
    except (RecipeError, StorageError):
        raise
    except Exception as error:
        cause = provenance.redact(str(error)).strip().partition("\n")[0]
        raise StorageError(f"MLflow at {provenance.redact(uri)} cannot be read: {cause}") from error


def _those(called: str, names: Sequence[str], kind: str) -> str:
    if not names:
        return f"; there are no {kind}"
    near = difflib.get_close_matches(called, names, n=1, cutoff=0.6)
    shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")
    return (f"; did you mean {near[0]}?" if near else "") + f"; {kind}, the newest first: {shown}"
