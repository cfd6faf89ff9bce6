"""What a run was made of, as far as it was written down: settings, code, data, packages, environment; and in what several runs differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.tracking import lookup, provenance, runs
from pipelines.tracking.runs import Kept

if TYPE_CHECKING:
    from mlflow import MlflowClient

Facts = Mapping[str, Mapping[str, str]]
"""group -> name -> value; what nobody wrote down is left out."""
_TAGS = {
    "code": {"commit": "mlflow.source.git.commit", "program": "raylway.code", "network": "raylway.network_code"},
    "data": {"fingerprint": "data.fingerprint"},
    "environment": {name: f"raylway.{name}" for name in ("workers", "threads", "cpus", "gpus", "hardware")},
}


@dataclass(frozen=True)
class Difference:
    """One thing in which runs differ: what each of them has; None where it was not written down."""

    group: str
    name: str
    values: tuple[str | None, ...]


def facts(client: MlflowClient, run: Kept) -> dict[str, dict[str, str]]:
    """What MLflow keeps of how a run was made. Raises StorageError where its settings are missing."""
    settings = {name: str(value) for name, value in flat(lookup.config(client, run)).items()}
    told = {group: {name: run.tags[tag][:12] if name == "commit" else run.tags[tag] for name, tag in tags.items() if run.tags.get(tag)}
            for group, tags in _TAGS.items()}  # fmt: skip
    told["code"]["diff"] = digest(runs.text(client, run.run_id, "git.diff"))
    return {"settings": settings} | told | {"packages": lookup.versions(client, run)}


def here() -> dict[str, dict[str, str]]:
    """The code and the packages of this process."""
    code = {"commit": (provenance.git_commit() or "")[:12], "program": provenance.code(), "diff": digest(provenance.git_diff())}
    return {"code": {name: value for name, value in code.items() if value}, "packages": provenance.versions()}


def differences(several: Sequence[Facts], ignored: Sequence[str] = ()) -> list[Difference]:
    """In what the runs differ, in the order in which it was written down. `ignored` settings (and those below them) are passed over."""
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
    """A short hash of what differed from the commit; `none` where nothing did."""
    return hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else "none"
