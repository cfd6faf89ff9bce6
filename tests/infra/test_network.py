"""Who reaches whom on Kubernetes: Ray's metrics port asks for no token, so the network must keep it for Prometheus."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.infra.manifests import Object, clusters, overlay, platform
from tests.infra.network import Outside, Pod, lets_through

METRICS, DASHBOARD, MLFLOW, POSTGRES = 8080, 8265, 5000, 5432
PROMETHEUS, OPERATOR = Pod({}, namespace="monitoring"), Pod({}, namespace="kuberay-system")
STRANGER, NEIGHBOUR = Pod({}, namespace="default"), Pod({"app": "another"})
TRACKING, DATABASE = (Pod({"app.kubernetes.io/name": name}) for name in ("mlflow", "postgres"))
API_SERVER, METADATA = Outside("10.0.0.1"), Outside("169.254.169.254")
Connection = tuple[Any, Any, int]


@functools.cache
def everything() -> list[Object]:
    return [*platform(), *overlay("cluster"), *overlay("train")]


@functools.cache
def _labels(name: str, group: str) -> Pod:
    [cluster] = clusters(overlay(name))
    spec = cluster["headGroupSpec"] if group == "head" else cluster["workerGroupSpecs"][0]
    return Pod(spec["template"]["metadata"]["labels"])


def wanted() -> dict[str, Connection]:
    head, worker, shared = _labels("train", "head"), _labels("train", "worker"), _labels("cluster", "head")
    [job] = overlay("train")
    submitter = Pod(job["spec"]["submitterPodTemplate"]["metadata"]["labels"])
    return {
        "Prometheus asks the head": (PROMETHEUS, head, METRICS),
        "Prometheus asks a worker": (PROMETHEUS, worker, METRICS),
        "KubeRay asks the head for its job": (OPERATOR, head, DASHBOARD),
        "the job is submitted": (submitter, head, DASHBOARD),
        "a worker joins": (worker, head, 6379),
        "workers train together": (worker, worker, 40000),
        "the driver tells MLflow": (head, TRACKING, MLFLOW),
        "MLflow asks its database": (TRACKING, DATABASE, POSTGRES),
        "MLflow reaches the object store": (TRACKING, Outside("52.1.2.3"), 443),
        "the autoscaler asks Kubernetes": (shared, API_SERVER, 443),
    }


def unwanted() -> dict[str, Connection]:
    head, worker, shared = _labels("train", "head"), _labels("train", "worker"), _labels("cluster", "head")
    return {
        "a stranger reads the head's metrics": (STRANGER, head, METRICS),
        "a stranger reads a worker's metrics": (STRANGER, worker, METRICS),
        "a neighbour in the namespace reads metrics": (NEIGHBOUR, worker, METRICS),
        "MLflow reads metrics": (TRACKING, head, METRICS),
        "Prometheus submits jobs": (PROMETHEUS, head, DASHBOARD),
        "a stranger submits jobs": (STRANGER, head, DASHBOARD),
        "a stranger joins a cluster": (STRANGER, head, 6379),
        "a stranger calls MLflow": (STRANGER, TRACKING, MLFLOW),
        "training reads the database": (head, DATABASE, POSTGRES),
        "a run's head asks Kubernetes": (head, API_SERVER, 443),
        "a worker asks Kubernetes": (worker, API_SERVER, 443),
        "a worker calls out": (worker, Outside("52.1.2.3"), 443),
        "the shared head takes the machine's identity": (shared, METADATA, 443),
        "MLflow takes the machine's identity": (TRACKING, METADATA, 443),
    }


@pytest.mark.parametrize("name", list(wanted()))
def test_who_must_reaches(name: str) -> None:
    assert lets_through(everything(), *wanted()[name])


@pytest.mark.parametrize("name", list(unwanted()))
def test_who_must_not_does_not(name: str) -> None:
    assert not lets_through(everything(), *unwanted()[name])


def _policy(objects: list[Object], name: str) -> Any:
    return next(each["spec"] for each in objects if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == name)


def _without(objects: list[Object], name: str) -> None:
    objects[:] = [each for each in objects if (each["kind"], each["metadata"]["name"]) != ("NetworkPolicy", name)]


HOLES: dict[str, tuple[Callable[[list[Object]], Any], set[str]]] = {
    "metrics for everyone": (
        lambda o: _policy(o, "ray")["ingress"].append({"ports": [{"port": METRICS}]}),
        {"a stranger reads the head's metrics", "a stranger reads a worker's metrics"},  # others may not call out
    ),
    "no policy of Ray's pods, and none that denies": (
        lambda o: (_without(o, "ray"), _without(o, "nothing-but")),
        {
            *("a stranger reads the head's metrics", "a stranger reads a worker's metrics", "a neighbour in the namespace reads metrics"),
            *("Prometheus submits jobs", "a stranger submits jobs", "a stranger joins a cluster"),
            *("a run's head asks Kubernetes", "a worker asks Kubernetes", "a worker calls out"),
        },
    ),
    "Kubernetes for every head": (
        lambda o: _policy(o, "autoscaler").update(podSelector={"matchLabels": {"raylway/role": "head"}}),
        {"a run's head asks Kubernetes"},
    ),
    "every address for the shared head": (
        lambda o: _policy(o, "autoscaler").update(egress=[{"ports": [{"port": 443}]}]),
        {"the shared head takes the machine's identity"},
    ),
}


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_is_found(name: str) -> None:
    change, expected = HOLES[name]
    objects = copy.deepcopy(everything())
    change(objects)
    assert {each for each, connection in unwanted().items() if lets_through(objects, *connection)} == expected
