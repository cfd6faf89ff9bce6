"""Prove that a folder is the same on every node: each node looks for what the driver writes there, and the driver for its reply.

Node-local storage is otherwise found out late: workers wait for data that they will never see, or a checkpoint is on a disk that is gone.
It costs one round of tasks that take no CPU, and on each node the start of a process, once a node and command.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cluster import ClusterError, nodes, probes
from cluster.nodes import Node

_PATIENCE_SECONDS = 40.0
"""A client of NFS may remember for 30 s (acdirmin) what a folder held."""
_START_SECONDS = 60.0
_AGAIN_SECONDS = 0.1


@dataclass
class SharedStorage:
    """Shows that `folder` is the same on the nodes of the cluster that this process is connected to; what is shown once stays so."""

    folder: Path
    say: Callable[[str], None]
    _shown: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Ask the nodes that were not asked before. Raises ClusterError, naming them, where the folder is another one there.

        A node that does not answer is reported and no more: it may be dying, and Ray will say so.
        """
        staying = {node.id: node for node in nodes.alive().values() if not node.leaving}
        asked = {id: node for id, node in staying.items() if id not in self._shown}
        if len(staying) < 2 or not asked:
            return
        errors, silent = compare(self.folder, asked.values())
        if errors:
            named = "; on ".join(f"{asked[id]}: {why}" for id, why in errors.items())
            raise ClusterError(
                f"storage={self.folder} is not the same folder on {named}; use a path that all nodes share, such as one on NFS"
            )
        for id, why in silent.items():
            self.say(f"storage={self.folder} could not be looked for on {asked[id]}: {why}")
        self._shown.update(id for id in asked if id not in silent)


def compare(folder: Path, asked: Iterable[Node]) -> tuple[dict[str, str], dict[str, str]]:
    """Node's id -> error of `folder` as that node sees it, and node's id -> why it did not answer; nodes that see the same are in neither.

    Raises ClusterError if the driver cannot write it either.
    """
    asked, text = list(asked), uuid.uuid4().hex
    place = folder / f".canary.{text[:8]}"
    try:
        place.mkdir(parents=True)
        (place / "driver").write_text(text)
    except OSError as error:
        raise ClusterError(f"storage={folder} cannot be written: {error.strerror}") from error
    try:
        wait = _PATIENCE_SECONDS + _START_SECONDS
        errors, silent = probes.ask(asked, probes.sees, lambda node: (str(place), "driver", node.id, text, _PATIENCE_SECONDS), seconds=wait)
        unseen = _unseen(place, [id for id, why in errors.items() if not why], text)
        errors |= dict.fromkeys(unseen, "what is written there is not seen by the driver")
        return {id: why for id, why in errors.items() if why}, silent
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _unseen(place: Path, replies: list[str], text: str) -> list[str]:
    """Those of the files `replies` that the driver does not come to see."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        names = {path.name for path in place.iterdir()}  # opening the folder is what makes a client of NFS look again
        missing = [name for name in replies if name not in names or (place / name).read_text() != text]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(_AGAIN_SECONDS)
