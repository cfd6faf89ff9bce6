"""Connect to a Ray cluster, or start one for this process; the CPUs and GPUs that it has for training.

Starting costs seconds, so it happens in a thread of its own while the caller goes on. That thread must outlive the cluster: Ray ties
its processes to the *thread* that started them (PR_SET_PDEATHSIG), so when it ends, the cluster is killed (Ray 2.60).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import ClusterError, connection, ray_internals
from cluster.capacity import Resources
from cluster.connection import Watch
from cluster.nodes import own_raylet

# The glibc allocator keeps freed memory instead of giving it back to the kernel at every step: 1.65 times the speed for a small CNN,
# 2 times for an LSTM, on CPUs. It is read when a process starts, so it must stand in the environment before.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "67108864",
}
_OBJECT_STORE_BYTES = 512 << 20


class Session:
    """A connection to a cluster, made in the background; `ready` waits for it."""

    def __init__(self, connecting: Future[Watch | None], local: bool) -> None:
        self._connecting, self.local = connecting, local

    @property
    def watch(self) -> Watch | None:
        """The watch over the cluster; None while there is no connection, and where the connection is the caller's own."""
        return self._connecting.result() if self._connecting.done() and not self._connecting.exception() else None

    @property
    def lost(self) -> bool:
        """True if the cluster answered once and does not any more."""
        return self.watch is not None and (self.watch.lost or self.watch.gone())

    def ready(self) -> None:
        """Wait until the cluster answers. Raises ClusterError."""
        try:
            self._connecting.result()
        except Exception as error:
            if isinstance(error, ClusterError):
                raise
            raise connection.translated(error, f"RAY_ADDRESS={address()}" if address() else "Ray") from error

    def resources(self) -> Resources:
        """CPUs and GPUs that the cluster has for training."""
        self.ready()
        if self.local:
            return local_resources()
        alive = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
        nodes = tuple((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive)
        cpus, gpus = sum(cpus for cpus, _ in nodes), sum(gpus for _, gpus in nodes)
        limit = ray_internals.growth_limit()
        most_cpus, most_gpus = max(cpus, int(limit.get("CPU", 0))), max(gpus, int(limit.get("GPU", 0)))
        if (most_cpus, most_gpus) != (cpus, gpus):  # the autoscaler will add nodes, of sizes that are not known
            return Resources(cpus=most_cpus, gpus=most_gpus, node_cpus=most_cpus)
        return Resources(cpus=cpus, gpus=gpus, node_cpus=max((cpus for cpus, _ in nodes), default=0), nodes=nodes)


def local_resources() -> Resources:
    """The cores that this process may use and the NVIDIA GPUs that it may see, found without torch or Ray."""
    cores = len(os.sched_getaffinity(0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if visible is None else len([name for name in visible.split(",") if name])
    return Resources(cpus=cores, gpus=gpus, node_cpus=cores)


def address() -> str | None:
    """The cluster that this process belongs to (RAY_ADDRESS, set by `ray job submit`), or None: start one here."""
    return os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connect() -> Iterator[Session]:
    """A session for the `with` block. A cluster that this process is connected to already is used, and left as it is."""
    if "ray" in sys.modules and _ray().is_initialized():
        done: Future[Watch | None] = Future()
        done.set_result(None)
        # the caller's own Ray, such as a notebook's, offers each core once, so it is treated like a cluster of others (see _start)
        twice = _ray().cluster_resources().get("CPU", 0) >= 2 * local_resources().cpus
        yield Session(done, local=address() is None and twice)
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in (ALLOCATOR | ray_internals.SESSION_SWITCHES).items()})
    with ThreadPoolExecutor(1, thread_name_prefix="ray") as keeper:
        connecting: Future[Watch | None] = keeper.submit(_start, address())
        lost = False
        session = Session(connecting, local=address() is None)
        try:
            yield session
        except (Exception, KeyboardInterrupt) as error:
            if session.watch and (lost := session.watch.explains(error)):
                raise session.watch.error() from error
            raise
        finally:
            if not connecting.exception() and session.watch:  # waits for the connection
                session.watch.close()
            if not lost:  # it would wait for the control plane
                ray_internals.kill_autoscaler()
                _ray().shutdown()


def _start(where: str | None) -> Watch | None:
    if where:
        connection.check(where)
        _ray().init(address=where, logging_level="ERROR", runtime_env={"env_vars": ALLOCATOR})
    else:
        # Each core is offered twice, once to the workers and once to Ray Data, which prepares before they train; with each
        # offered once, Data waits for ever for a CPU that the workers hold. "local", or a stale address file is followed.
        _ray().init(
            address="local",
            num_cpus=2 * local_resources().cpus,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level="ERROR",
            _metrics_export_port=_metrics_port(),
        )
    return Watch(_ray().get_runtime_context().gcs_address, local=where is None, raylet=own_raylet())


def _metrics_port() -> int | None:
    """The port on which a cluster that is started here exports metrics to Prometheus: RAYLWAY_METRICS_PORT, else any free one."""
    text = os.environ.get("RAYLWAY_METRICS_PORT")
    if text and not (text.isdecimal() and 1024 <= int(text) < 65536):
        raise ClusterError(f"RAYLWAY_METRICS_PORT={text}: not a port; write a number from 1024 to 65535")
    return int(text) if text else None


def _ray() -> Any:
    import ray

    return ray
