"""Examine the cluster that this process is connected to: every node is asked, all at once, and none is waited for longer than is said."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import allreduce_probe, ask_nodes, connection, doctor, nodes, probes, shared_storage
from cluster.doctor import FAIL, PASS, WARN, Check
from cluster.nodes import Node
from cluster.session import Session, local_resources

_SECONDS = 60.0
"""For a node to start a process and answer."""
_CLOCK_SECONDS, _CLOCK_TIMES = 10.0, 3
_SERVER_SECONDS = 10.0


def examined(session: Session, folder: Path | None, *, package: str, server: str | None, uri: str, allow_open: bool) -> Iterator[Check]:
    """The checks, as they are done. `folder` is the storage (None: it cannot be written even here), `package` what nodes must be able to
    import, `server` the URL of MLflow's health (None: it is a database) and `uri` what MLflow may be called on a screen.

    Raises ClusterError if there is no cluster.
    """
    session.ready()
    everyone = nodes.there()
    there = [node for node in everyone.values() if not node.leaving]
    yield _connected(everyone.values())
    yield _auth(there, allow_open=allow_open)
    facts = ask_nodes.ask(there, probes.facts, lambda node: (str(folder or "/"), package), seconds=_SECONDS)
    for node in there:
        if why := facts.silent.get(node.id):
            yield Check("answer", str(node), FAIL, why, "look at its raylet.log and whether the node is alive; then start it again")
    there = [node for node in there if node.id in facts.answers]
    if not there:
        return
    yield from _facts(there, facts.answers, here=probes.facts(str(folder or "/"), package), package=package, session=session)
    for node in there:
        yield _clock(node)
    if folder:
        yield from _storage(there, folder)
    if server:
        told = ask_nodes.ask(there, probes.reaches, lambda node: (server, _SERVER_SECONDS), seconds=_SERVER_SECONDS + _SECONDS)
        for node in there:
            yield doctor.mlflow(node, uri, told.silent.get(node.id) or told.answers.get(node.id, ""))
    without = [str(node) for node in there if not facts.answers[node.id]["versions"]["torch"]]
    if without:
        yield Check("all-reduce", "", WARN, f"not tried: no torch on {', '.join(without)}", "install torch there")
    else:
        yield doctor.all_reduce(allreduce_probe.tried(there))


def _connected(everyone: Any) -> Check:
    import ray

    leaving = sum(node.leaving for node in everyone)
    going = f", {leaving} of them about to be taken away" if leaving else ""
    return Check("cluster", "", PASS, f"Ray {ray.__version__}, {len(everyone)} node{'s' * (len(everyone) != 1)}{going}")


def _auth(there: list[Node], *, allow_open: bool) -> Check:
    import ray

    asked = not connection.lets_anyone_in(ray.get_runtime_context().gcs_address)
    return doctor.auth([node.host for node in there], asked=asked, sent=connection.token_mode(), allow_open=allow_open)


def _offered(session: Session, node: Node) -> tuple[float, float]:
    """(CPUs, GPUs) that Ray offers of a node; a cluster started here offers each core twice, so there it is what training may have."""
    import ray

    if session.local:
        there = local_resources()
        return there.cpus, there.gpus
    [found] = [each["Resources"] for each in ray.nodes() if each["NodeID"] == node.id]
    return found.get("CPU", 0), found.get("GPU", 0)


def _facts(there: list[Node], facts: Mapping[str, Any], *, here: Mapping[str, Any], package: str, session: Session) -> Iterator[Check]:
    """What the facts of the nodes say of them, one kind of check after another."""
    for node in there:
        yield doctor.versions(node, facts[node.id]["versions"], here["versions"])
    for node in there:
        yield doctor.package(node, facts[node.id], package)
    for node in there:
        cpus, gpus = _offered(session, node)
        yield doctor.resources(node, facts[node.id], cpus=cpus, gpus=gpus)
    for node in there:
        yield from doctor.disk(node, facts[node.id]["disks"])


def _clock(node: Node) -> Check:
    """Of a few readings the one that came back soonest: it knows best."""
    readings = []
    for _ in range(_CLOCK_TIMES):
        sent = time.time()
        told = ask_nodes.ask([node], probes.now, seconds=_CLOCK_SECONDS)
        if node.id in told.answers:
            readings.append(doctor.skew(sent, told.answers[node.id], time.time()))
    if not readings:
        return Check("clock", str(node), FAIL, f"no answer within {_CLOCK_SECONDS:g} s", "see whether the node is alive")
    return doctor.clock(node, *min(readings, key=lambda reading: reading[1]))


def _storage(there: list[Node], folder: Path) -> Iterator[Check]:
    wrong = shared_storage.looked_for(folder, there, seconds=shared_storage.PATIENCE_SECONDS)
    for node in there:
        yield doctor.storage(node, str(folder), wrong.get(node.id, ""))
