"""The queue's objects are what Kueue 0.16 and later take (kueue.x-k8s.io/v1beta2), as far as we use them.

The schema is ours, written after Kueue's definitions and strict: a field that it does not list is looked up in Kueue's before it is added.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from tests.infra.manifests import Object, platform

NAME = {"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
QUANTITY = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9.]+([KMGTPE]i|[mkMGTPE])?$"}]}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 8}


def strict(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def listed(item: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


QUOTA = strict(("name", "nominalQuota"), name={"type": "string"}, nominalQuota=QUANTITY, borrowingLimit=QUANTITY, lendingLimit=QUANTITY)
FLAVOR = strict(("name", "resources"), name=NAME, resources=listed(QUOTA, 64))
GROUP = strict(("coveredResources", "flavors"), coveredResources=listed({"type": "string"}, 64), flavors=listed(FLAVOR, 64))
SPECS = {
    "ResourceFlavor": strict(nodeLabels=LABELS),
    "ClusterQueue": strict(namespaceSelector=strict(matchLabels=LABELS), resourceGroups=listed(GROUP, 16), cohortName=NAME),
    "LocalQueue": strict(("clusterQueue",), clusterQueue=NAME),
}


def queue() -> list[Object]:
    return [each for each in platform() if each["apiVersion"].startswith("kueue.x-k8s.io/")]


def wrong(objects: list[Object]) -> list[str]:
    """What Kueue would refuse, or leave waiting for ever."""
    problems = [f"{each['kind']}: {each['apiVersion']}" for each in objects if each["apiVersion"] != "kueue.x-k8s.io/v1beta2"]
    for each in objects:
        problems += [
            f"{each['kind']}: {error.message}"
            for error in jsonschema.Draft7Validator(SPECS[each["kind"]]).iter_errors(each.get("spec", {}))
        ]
    names = {kind: {each["metadata"]["name"] for each in objects if each["kind"] == kind} for kind in SPECS}
    for each in objects:
        if each["kind"] == "LocalQueue" and each["spec"].get("clusterQueue") not in names["ClusterQueue"]:
            problems.append("LocalQueue: no such ClusterQueue")
        for group in each.get("spec", {}).get("resourceGroups", ()):
            for flavor in group["flavors"]:
                problems += [] if flavor["name"] in names["ResourceFlavor"] else ["ClusterQueue: no such ResourceFlavor"]
                if [quota["name"] for quota in flavor["resources"]] != group["coveredResources"]:
                    problems.append("ClusterQueue: resources of a flavor in another order than they are covered")
    return problems


def test_kueue_takes_the_queue() -> None:
    assert {each["kind"] for each in queue()} == set(SPECS)
    assert wrong(queue()) == []


def _of(objects: list[Object], kind: str) -> Any:
    return next(each for each in objects if each["kind"] == kind)


CHANGES: dict[str, Callable[[list[Object]], Any]] = {
    "a version that is deprecated": lambda o: o[0].update(apiVersion="kueue.x-k8s.io/v1beta1"),
    "a name of before": lambda o: _of(o, "ClusterQueue")["spec"].update(cohort="all"),
    "no quota": lambda o: _of(o, "ClusterQueue")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0].pop("nominalQuota"),
    "another queue": lambda o: _of(o, "LocalQueue")["spec"].update(clusterQueue="elsewhere"),
    "another flavor": lambda o: _of(o, "ClusterQueue")["spec"]["resourceGroups"][0]["flavors"][0].update(name="elsewhere"),
    "another order": lambda o: _of(o, "ClusterQueue")["spec"]["resourceGroups"][0]["coveredResources"].reverse(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_kueue_refuses_is_found(name: str) -> None:
    objects = copy.deepcopy(queue())
    CHANGES[name](objects)
    assert len(wrong(objects)) == 1
