"""The facts that MLflow keeps of a run (settings, code, data, packages, environment): read, added to, and compared with those of others."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.errors import StorageError
from pipelines.tracking import provenance
from pipelines.tracking.lookup import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

Facts = Mapping[str, Mapping[str, str]]
"""group -> name -> value; what was not recorded is left out."""
_TAGS = {
    "code": {"commit": "mlflow.source.git.commit", "program": "raylway.code", "network": "raylway.network_code"},
    "data": {"fingerprint": "data.fingerprint"},
    "environment": {name: f"raylway.{name}" for name in ("workers", "threads", "cpus", "gpus", "hardware")},
}
_SMALL = 1e-3
_MACHINE = ("threads", "workers", "hardware")


@dataclass(frozen=True)
class Difference:
    """A fact that differs between runs, with the value of each; None where it was not recorded."""

    group: str
    name: str
    values: tuple[str | None, ...]


def facts(client: MlflowClient, run: TrackedRun) -> dict[str, dict[str, str]]:
    """The facts of a run. Raises StorageError where its settings are missing."""
    settings = {name: str(value) for name, value in flat(yaml.safe_load(config(client, run))).items()}
    recorded = {group: {name: run.tags[tag][:12] if name == "commit" else run.tags[tag] for name, tag in tags.items() if run.tags.get(tag)}
            for group, tags in _TAGS.items()}  # fmt: skip
    recorded["code"]["diff"] = digest(text(client, run.run_id, "git.diff"))
    return {"settings": settings} | recorded | {"packages": json.loads(text(client, run.run_id, "versions.json") or "{}")}


def text(client: MlflowClient, run_id: str, name: str) -> str | None:
    """The content of a text artifact, or None if the run has none of that name."""
    with tempfile.TemporaryDirectory(prefix="raylway-") as scratch:
        file = artifact(client, run_id, name, Path(scratch))
        return file.read_text(encoding="utf-8", errors="replace") if file else None


def artifact(client: MlflowClient, run_id: str, name: str, into: Path) -> Path | None:
    """An artifact as a file in the folder `into`, or None if the run has none of that name."""
    if not any(file.path == name for file in client.list_artifacts(run_id, str(Path(name).parent) if "/" in name else None)):
        return None
    return Path(client.download_artifacts(run_id, name, str(into)))


def write(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Add scores (at step 0), tags, files (artifact path -> local file) and figures (artifact path -> matplotlib) to a run that is over."""
    from mlflow.entities import Metric, RunTag

    now = int(1000 * time.time())
    points = [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()]
    client.log_batch(run_id, metrics=points, tags=[RunTag(name, provenance.redact(value)) for name, value in (tags or {}).items()])
    for name, figure in (figures or {}).items():
        client.log_figure(run_id, figure, name)
    for name, file in (files or {}).items():
        client.log_artifact(run_id, str(file), str(Path(name).parent))


def config(client: MlflowClient, run: TrackedRun) -> str:
    """The text of a run's config.yaml. Raises StorageError where it is missing."""
    found = text(client, run.run_id, "config.yaml")
    if found is None:
        raise StorageError(f"{run.name}: its config.yaml is not in MLflow, so it was not trained by raylway, or not to its start")
    return found


def here() -> dict[str, dict[str, str]]:
    """The code and the packages of this process."""
    code = {"commit": (provenance.git_commit() or "")[:12], "program": provenance.code(), "diff": digest(provenance.git_diff())}
    return {"code": {name: value for name, value in code.items() if value}, "packages": provenance.versions()}


def differences(several: Sequence[Facts], ignored: Sequence[str] = ()) -> list[Difference]:
    """The facts that differ between runs, in the order in which they were recorded, but for `ignored` settings and those below them."""
    keys = dict.fromkeys((group, name) for each in several for group, values in each.items() for name in values)
    found = [Difference(group, name, tuple(each.get(group, {}).get(name) for each in several)) for group, name in keys]
    return [one for one in found if len(set(one.values)) > 1 and not (one.group == "settings" and one.name.startswith(tuple(ignored)))]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def digest(diff: str | None) -> str:
    """A short hash of the diff against the commit; `none` where there is no difference."""
    return hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else "none"


@dataclass(frozen=True)
class Cause:
    """A possible cause of other numbers, by kind: code, data, packages, threads, workers or hardware."""

    kind: str
    recorded: str
    now: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.recorded} then, {self.now} now"


def causes(recorded: Facts, now: Facts, size: float | None = None) -> list[Cause]:
    """The recorded facts that differ, the likeliest cause first; `size` is the relative error of the first number that differs.

    A sum taken in another order is off by little at first; other rows or other code by much. Code is the same if its files are, whatever
    the commit says.
    """
    code, data = _code(recorded, now), _one("data", "data", "fingerprint", recorded, now)
    machine = [*_packages(recorded, now), *(one for name in _MACHINE for one in _one(name, "environment", name, recorded, now))]
    return [*machine, *code, *data] if size is not None and size < _SMALL else [*data, *code, *machine]


def _one(kind: str, group: str, name: str, recorded: Facts, now: Facts) -> list[Cause]:
    was, is_now = recorded.get(group, {}).get(name), now.get(group, {}).get(name)
    return [Cause(kind, was, is_now)] if was and is_now and was != is_now else []


def _code(recorded: Facts, now: Facts) -> list[Cause]:
    was, is_now = recorded.get("code", {}), now.get("code", {})
    decides = ("program",) if "program" in was else ("commit", "diff")
    if not was.keys() & set(decides) or all(was.get(name) == is_now.get(name) for name in decides):
        return []
    shown = [name for name in ("commit", "diff", "program", "network") if was.get(name) != is_now.get(name)]
    return [Cause("code", *(", ".join(f"{name} {code.get(name, 'unknown')}" for name in shown) for code in (was, is_now)))]


def _packages(recorded: Facts, now: Facts) -> list[Cause]:
    was, is_now = recorded.get("packages", {}), now.get("packages", {})
    names = [name for name in was if name in is_now and was[name] != is_now[name]]
    return [Cause("packages", *(", ".join(f"{name} {each[name]}" for name in names) for each in (was, is_now)))] if names else []
