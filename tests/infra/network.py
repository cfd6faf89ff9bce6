"""What network policies let through, by Kubernetes' rules: a pod that is selected may do what some policy of its allows, and no more."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.infra.manifests import Object


@dataclass(frozen=True)
class Pod:
    labels: dict[str, str]
    namespace: str = "raylway"


@dataclass(frozen=True)
class Outside:
    """An address that no pod has: the API server, an object store, a cloud's metadata."""

    address: str
    labels: dict[str, str] = field(default_factory=dict)


Peer = Pod | Outside


def lets_through(objects: list[Object], source: Peer, target: Peer, port: int) -> bool:
    """Whether `source` reaches TCP `port` of `target` in a network that enforces the policies among `objects`."""
    return _allowed(objects, source, "Egress", "to", target, port) and _allowed(objects, target, "Ingress", "from", source, port)


def _allowed(objects: list[Object], pod: Peer, direction: str, key: str, peer: Peer, port: int) -> bool:
    policies = [spec for namespace, spec in _policies(objects) if direction in spec["policyTypes"] and _selected(spec, namespace, pod)]
    rules = [rule for spec in policies for rule in spec.get(direction.lower(), ())]
    return not policies or any(_matches(rule, key, pod, peer, port) for rule in rules)


def _selected(spec: dict[str, Any], namespace: str, pod: Peer) -> bool:
    return isinstance(pod, Pod) and pod.namespace == namespace and selects(spec["podSelector"], pod.labels)


def _policies(objects: list[Object]) -> Iterator[tuple[str, Any]]:
    for each in objects:
        if each["kind"] == "NetworkPolicy":
            yield each["metadata"].get("namespace", "raylway"), each["spec"]


def _matches(rule: dict[str, Any], key: str, owner: Peer, peer: Peer, port: int) -> bool:
    ports = [each["port"] for each in rule.get("ports", ()) if each.get("protocol", "TCP") == "TCP"]
    if "ports" in rule and port not in ports:
        return False
    return key not in rule or any(_is(each, owner, peer) for each in rule[key])


def _is(described: dict[str, Any], owner: Peer, peer: Peer) -> bool:
    if "ipBlock" in described:
        block = described["ipBlock"]
        inside = _within(peer, block["cidr"])
        return inside and not any(_within(peer, network) for network in block.get("except", ()))
    if not isinstance(peer, Pod) or not isinstance(owner, Pod):
        return False
    space = described.get("namespaceSelector")
    here = peer.namespace == owner.namespace if space is None else selects(space, {"kubernetes.io/metadata.name": peer.namespace})
    return here and selects(described.get("podSelector", {}), peer.labels)


def _within(peer: Peer, network: str) -> bool:
    return isinstance(peer, Outside) and ipaddress.ip_address(peer.address) in ipaddress.ip_network(network)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes something of these labels."""
    equal = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return equal and all(_holds(each, labels) for each in selector.get("matchExpressions", ()))


def _holds(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    there = expression["key"] in labels
    match expression["operator"]:
        case "Exists":
            return there
        case "In":
            return there and labels[expression["key"]] in expression["values"]
    raise ValueError(f"operator {expression['operator']}: not of those that infra/ uses")
