"""One of several processes that promote at the same moment."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

from pipelines.tracking import promotions
from pipelines.tracking.mlflow import connect


def promote_at_the_gate(uri: str, version: int, gate: str) -> str:
    """Look who is champion, wait until all have, and promote: "won", or why not."""
    client = connect(uri)
    seen = promotions.seen(client, "race")
    (Path(gate) / f"ready-{version}").touch()
    while not (Path(gate) / "go").exists():
        time.sleep(0.001)
    try:
        promotions.promote(client, "race", version, judged_against=seen)
    except promotions.Conflict as conflict:
        return str(conflict)
    return "won"
