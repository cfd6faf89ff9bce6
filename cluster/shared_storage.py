"""Is a folder the same on every node? What is written here is looked for there, and what is written there is looked for here.

Node-local storage is otherwise found out late: workers wait for data that they will never see, or a checkpoint is on a disk that is gone.
It costs one round of tasks without a CPU, and on each node the start of the process that runs it, once a node and command.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import ClusterError, ask_nodes, nodes, probes
from cluster.nodes import Node

PATIENCE_SECONDS = 40.0
"""A client of NFS may remember for 30 s (acdirmin) what a folder held."""
_START_SECONDS = 60.0
_AGAIN_SECONDS = 0.1


@dataclass
class Canary:
    """Shows that `folder` is the same on the nodes of the cluster that this process is connected to; what is shown once stays so."""

    folder: Path
    say: Callable[[str], None]
    patience_seconds: float = PATIENCE_SECONDS
    _shown: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Ask the nodes that were not asked before. Raises ClusterError, naming them, where the folder is another one there.

        A node that does not answer is told of and no more: it may be dying, and Ray will say so.
        """
        there = [node for node in nodes.there().values() if not node.leaving]
        asked = [node for node in there if node.id not in self._shown]
        if len(there) < 2 or not asked:
            return
        wrong = looked_for(self.folder, asked, seconds=self.patience_seconds)
        by_id = {node.id: node for node in asked}
        if other := {str(by_id[name]): why for name, why in wrong.items() if not isinstance(why, Silence)}:
            raise ClusterError(
                f"storage={self.folder} is not the same folder on {'; on '.join(f'{node}: {why}' for node, why in other.items())}; "
                "use a path that all nodes share, such as one on NFS"
            )
        for name, why in wrong.items():
            self.say(f"storage={self.folder} could not be looked for on {by_id[name]}: {why}")
        self._shown.update(name for name in by_id if name not in wrong)


class Silence(str):
    """Why a node said nothing."""

    __slots__ = ()


def looked_for(folder: Path, asked: Iterable[Node], *, seconds: float) -> Mapping[str, str]:
    """Node's id -> what is wrong with `folder` as it sees it; those where nothing is are left out. Raises ClusterError if it is not there
    here either."""
    asked, text = list(asked), uuid.uuid4().hex
    place = folder / f".canary.{text[:8]}"
    try:
        place.mkdir(parents=True)
        (place / "driver").write_text(text)
    except OSError as error:
        raise ClusterError(f"storage={folder} cannot be written: {error.strerror}") from error
    try:
        told = ask_nodes.ask(
            asked, probes.answers, lambda node: (str(place), "driver", node.id, text, seconds), seconds=seconds + _START_SECONDS
        )
        wrong = {name: Silence(why) for name, why in told.silent.items()} | {name: why for name, why in told.answers.items() if why}
        unseen = _awaited(place, [name for name, why in told.answers.items() if not why], text, seconds=seconds)
        return wrong | dict.fromkeys(unseen, "what is written there is not seen by the driver")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _awaited(place: Path, replies: list[str], text: str, *, seconds: float) -> list[str]:
    """Those of `replies` that do not come to be seen within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        there = {path.name for path in place.iterdir()}  # opening the folder is what makes a client of NFS look again
        missing = [name for name in replies if name not in there or (place / name).read_text() != text]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(_AGAIN_SECONDS)
