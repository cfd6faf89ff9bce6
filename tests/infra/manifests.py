"""The Kubernetes objects that infra/ ships, as `kubectl kustomize` makes them of an overlay; no cluster is asked."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
Object = dict[str, Any]
_PLAIN = {  # overlays that only name the image anew
    "train": ("base/run/rayjob.yaml",),
    "cluster": ("overlays/cluster/raycluster.yaml", "overlays/cluster/network.yaml"),
}


@functools.cache
def _rendered(folder: Path) -> str:
    return subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True, timeout=60).stdout


def overlay(name: str) -> list[Object]:
    """What the overlay of that name makes; where there is no kubectl, its plain file, and the test skips if patches make it another."""
    if shutil.which("kubectl"):
        text = _rendered(KUBERNETES / "overlays" / name)
    elif name in _PLAIN:
        text = "\n---\n".join((KUBERNETES / path).read_text() for path in _PLAIN[name])
    else:
        pytest.skip(f"kubectl is not installed: the overlay {name} is not checked")
    return [each for each in yaml.safe_load_all(text) if each]


def platform() -> list[Object]:
    """What all runs share: MLflow, its database, network, quotas, the queue."""
    return _made_of(KUBERNETES / "base" / "platform")


def monitoring() -> list[Object]:
    """What Prometheus' operator and Grafana are given."""
    return _made_of(INFRA / "monitoring", pieces=("podmonitor.yaml",))


def _made_of(folder: Path, pieces: tuple[str, ...] | None = None) -> list[Object]:
    """What a kustomization makes; where there is no kubectl, its plain files, which differ in the names of images only."""
    if shutil.which("kubectl"):
        return [each for each in yaml.safe_load_all(_rendered(folder)) if each]
    names = pieces or [path.name for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [each for name in names for each in yaml.safe_load_all((folder / name).read_text()) if each]


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """The strict schema of RayJob or RayCluster, made from KubeRay 1.7. Skips the test where it is not there."""
    path = ROOT.parent / "shared" / "schemas" / f"{kind.lower()}.v1.schema.json"
    if not path.exists():
        pytest.skip(f"no {path.name} beside this repository: {kind} is not checked against KubeRay's definition")
    return json.loads(path.read_text())


def clusters(objects: list[Object]) -> Iterator[Object]:
    """The specification of each Ray cluster among the objects."""
    for each in objects:
        if each["kind"] == "RayJob":
            yield each["spec"]["rayClusterSpec"]
        if each["kind"] == "RayCluster":
            yield each["spec"]


def pods(objects: list[Object]) -> Iterator[Object]:
    """The specification of each pod among the objects, whatever makes it."""
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each["spec"]["template"]["spec"]
        if each["kind"] == "CronJob":
            yield each["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        if each["kind"] == "RayJob" and "submitterPodTemplate" in each["spec"]:
            yield each["spec"]["submitterPodTemplate"]["spec"]
    for cluster in clusters(objects):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]


def containers(objects: list[Object]) -> Iterator[Object]:
    for pod in pods(objects):
        yield from (*pod.get("initContainers", ()), *pod["containers"])
