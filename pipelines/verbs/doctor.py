"""Doctor: check a cluster, its storage and MLflow before money is spent on it; each failure comes with its fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster import ClusterError, capacity, checks
from cluster import session as cluster_session
from cluster.checks import FAIL, PASS, Check
from cluster.session import Session
from pipelines import config
from pipelines.errors import RecipeError, StorageError
from pipelines.run_record import check_writable
from pipelines.run_settings import Run
from pipelines.screen import Screen
from pipelines.tracking import client, provenance

_FIXES = {
    "storage": "choose a folder that can be written: storage=…",
    "mlflow": "start the server, or say where it is: track.uri=…, or MLFLOW_TRACKING_URI",
    "workers": "lower scale.workers, scale.cpus or scale.gpus, or add nodes",
    "cluster": "see on the head what `ray status` says",
}
_ALLOWED = ("storage=", "track.uri=", "scale.")
_ANY_RECIPE = ("mlp", "train.batch=1000000")  # the settings that are asked for are every recipe's, and so are their checks


def doctor(overrides: Sequence[str], *, address: str | None, allow_open: bool, screen: Screen) -> dict[str, Any]:
    """{"checks": [{"name", "node", "status", "found", "fix"}], "status"} of the cluster at `address` (else RAY_ADDRESS, else one that is
    started here). Raises RecipeError."""
    if wrong := [each for each in overrides if not each.startswith(_ALLOWED)]:
        raise RecipeError(*(f"{each}: doctor asks for storage=, track.uri= and scale.*= only" for each in wrong))
    run = config.load(_ANY_RECIPE[0], [*_ANY_RECIPE[1:], *overrides]).run
    if address:
        os.environ["RAY_ADDRESS"] = address
    lines: list[Check] = []
    asked = any(each.startswith("scale.") for each in overrides)
    with closing(_checks(run, asked=asked, allow_open=allow_open, screen=screen)) as found:
        for _, same in groupby(found, key=lambda check: (check.name, check.status, check.found, check.fix)):
            lines += (alike := list(same))
            screen.say(_line(alike))
    status = checks.worst(lines)
    counts = ", ".join(f"{sum(check.status == each for check in lines)} {each}" for each in ("PASS", "WARN", "FAIL"))
    screen.say(f"{status}  ({counts})")
    return {"checks": [asdict(check) for check in lines], "status": status}


def _checks(run: Run, *, asked: bool, allow_open: bool, screen: Screen) -> Generator[Check, None, None]:
    uri = client.tracking_uri(run.root, run.track.uri)
    shown = provenance.redact(uri)
    here = [_told("storage", lambda: check_writable(run.root), f"{run.root} can be written")]
    server = _health(uri)
    answers = f"{shown} answers and accepts our login" if server else f"{shown}: embedded, only the driver opens it"
    here += [_told("mlflow", lambda: client.check(uri), answers)]
    yield from here
    # what Ray prints is not for this screen, and all that it means is among the checks
    with screen.captured(Path(os.devnull)), cluster_session.connect() as session:
        try:
            session.ready()
            if asked:
                yield _workers(run, session)
            ready = here[0].status == PASS
            yield from checks.examine(
                session, run.root if ready else None, package="pipelines", server=server, uri=shown, allow_open=allow_open
            )
        except ClusterError as error:
            address = cluster_session.address()
            called = str(error).replace(f"RAY_ADDRESS={address}", f"the cluster at {address}")  # it may have been given as --address
            yield _refused("cluster", "", ClusterError(called))


def _told(name: str, check: Callable[[], None], found: str) -> Check:
    """The result of a check on the driver, which raises StorageError where it fails."""
    try:
        check()
    except StorageError as error:
        return _refused(name, "driver", error)
    return Check(name, "driver", PASS, found)


def _workers(run: Run, session: Session) -> Check:
    """The check that the workers of scale.* fit on the cluster."""
    try:
        cpus, gpus = capacity.worker_share(session.resources(), run.scale)
    except ClusterError as error:
        return _refused("workers", "", error)
    return Check("workers", "", PASS, f"room for scale.workers={run.scale.workers} with {cpus:g} of the CPUs and {gpus:g} of the GPUs each")


def _refused(name: str, node: str, error: Exception) -> Check:
    """An error as a failed check: its message says what is wrong and, behind the last semicolon of most, what would be right."""
    found, _, fix = provenance.redact(str(error)).rpartition("; ")
    return Check(name, node, FAIL, found, fix) if found else Check(name, node, FAIL, fix, _FIXES[name])


def _health(uri: str) -> str | None:
    """The URL of a server's health, which asks for no login, so that no password goes to the nodes; None for a database."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"


def _line(alike: Sequence[Check]) -> str:
    """One line for equal results of several nodes; where they are not PASS, each node is named."""
    check, many = alike[0], len(alike)
    where = f"{many} nodes" if many > 1 and check.status == PASS else ", ".join(each.node for each in alike)
    fix = f"\n      {'fix':<11}{check.fix}" if check.fix else ""
    return f"{check.status}  {check.name:<11}{f'{where}: ' if where else ''}{check.found}{fix}"
