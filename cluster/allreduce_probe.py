"""Do processes of all nodes meet, and how fast do they add up? An all-reduce as training makes one at every step.

Bus bandwidth is that of nccl-tests (doc/PERFORMANCE.md): bytes / seconds x 2(n-1)/n for n processes. So it can be held against what the
network is sold as, however many processes there are.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cluster import ask_nodes, probes
from cluster.nodes import Node

SMALL_BYTES, LARGE_BYTES = 1 << 20, 64 << 20
_TIMES = 5
_START_SECONDS, _SECONDS = 90.0, 60.0


@dataclass(frozen=True)
class Ring:
    """What came of it: the processes and what they spoke, the bus bandwidth in MB/s (10^6 bytes) for each size, and who took no part."""

    backend: str
    processes: int
    bandwidth: tuple[float, ...] = ()
    wrong: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = (f"{speed:,.0f} MB/s at {size >> 20} MiB" for speed, size in zip(self.bandwidth, (SMALL_BYTES, LARGE_BYTES), strict=True))
        return f"{self.backend}, {self.processes} processes, bus bandwidth " + ", ".join(sizes)


def bus_bandwidth(size: int, seconds: float, processes: int) -> float:
    """MB/s that each process's link to the others carried (nccl-tests)."""
    return size / seconds * 2 * (processes - 1) / processes / 1e6


def tried(nodes: Sequence[Node]) -> Ring:
    """An all-reduce over one process a node, or two on the only one: by nccl where each has a GPU free now, else by gloo."""
    places = list(nodes) if len(nodes) > 1 else [*nodes, *nodes]
    each = len(places) // len(nodes)
    backend = "nccl" if all(node.gpus >= each for node in nodes) else "gloo"
    first = ask_nodes.ask(places[:1], probes.free_port, seconds=_START_SECONDS)
    if first.silent:
        return Ring(backend, len(places), wrong=tuple(f"{places[0]}: {why}" for why in first.silent.values()))
    meeting = f"tcp://{_host(places[0].host)}:{first.answers[places[0].id]}"
    sizes = (SMALL_BYTES, LARGE_BYTES)
    asked = {}
    for rank, node in enumerate(places):
        told = (meeting, rank, len(places), backend, sizes, _TIMES, _SECONDS)
        asked[str(rank)] = ask_nodes.send(node, probes.sums, *told, gpus=float(backend == "nccl"), alone=True)
    came = ask_nodes.gather(asked, seconds=_START_SECONDS + _SECONDS)
    if came.silent:
        return Ring(backend, len(places), wrong=tuple(f"{places[int(rank)]}: {why}" for rank, why in came.silent.items()))
    typical = [statistics.median(seconds) for seconds in zip(*came.answers.values(), strict=True)]
    return Ring(backend, len(places), tuple(bus_bandwidth(size, took, len(places)) for size, took in zip(sizes, typical, strict=True)))


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
