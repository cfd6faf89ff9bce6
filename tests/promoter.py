"""Several processes that promote at the same moment."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pipelines.tracking import promotions
from pipelines.tracking.client import connect
from tests import forked


def promote_at_the_gate(uri: str, version: int, gate: str) -> str:
    """Read the champion, wait until all have, and promote in the storage `gate`: "won", or why not."""
    client = connect(uri)
    standing = promotions.standing(client, "race")
    (Path(gate) / f"ready-{version}").touch()
    while not (Path(gate) / "go").exists():
        time.sleep(0.001)
    try:
        promotions.promote(client, "race", version, judged_against=standing, storage=Path(gate))
    except promotions.Conflict as conflict:
        return str(conflict)
    return "won"


def registry(uri: str, *, count: int, name: str = "race"):
    """A model with versions 1 … count."""
    client = connect(uri)
    client.create_registered_model(name)
    for _ in range(count):
        client.create_model_version(name, "s3://nowhere/model")
    return client


def raced(uri: str, challengers: list[int], gate: Path) -> list[str]:
    """What each of as many processes said that judged against one champion and promoted at the same moment."""
    gate.mkdir()
    # MLflow is imported, and each process has a database connection of its own
    with ProcessPoolExecutor(len(challengers), mp_context=forked.context()) as pool:
        said = [pool.submit(promote_at_the_gate, uri, version, str(gate)) for version in challengers]
        while len(list(gate.glob("ready-*"))) < len(challengers):
            assert not any(one.done() and one.exception() for one in said)
            time.sleep(0.01)
        (gate / "go").touch()
        return [one.result(timeout=120) for one in said]
