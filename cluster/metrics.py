"""Metrics for Prometheus, through Ray: numbers read every few seconds become gauges and counters on the metrics port of this node.

Ray keeps a gauge for two of its export intervals (10 s each) after its process is gone, so a run that ended leaves no number behind.
Telemetry costs nothing but itself: whatever goes wrong here ends nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.session import Session

_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Metric:
    """A metric as Prometheus shows it: `ray_<name>`, and `ray_<name>_total` where it is counted."""

    name: str
    help: str
    tags: tuple[str, ...] = ()
    """Tags beyond those that all metrics of one command have."""
    counted: bool = False

    @property
    def exported_as(self) -> str:
        return f"ray_{self.name}_total" if self.counted else f"ray_{self.name}"


@dataclass(frozen=True)
class Sample:
    """The value of a gauge now, or what is added to a counter."""

    metric: Metric
    value: float
    tags: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def exported(session: Session, read: Callable[[], Iterable[Sample]], *, tags: Mapping[str, str]) -> Iterator[None]:
    """Export the samples of `read` from a thread of its own, once the cluster answers and until the `with` block is left.

    `tags` stand on every metric. A last reading is exported at the end.
    """
    left = threading.Event()

    def export() -> None:
        with suppress(Exception):
            session.ready()
            series: dict[str, Any] = {}
            while True:
                last = left.wait(_EVERY_SECONDS)
                with suppress(Exception):  # one bad reading is not the last
                    for sample in read():
                        _record(series, sample, tags)
                if last:
                    return

    thread = threading.Thread(target=export, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(timeout=_EVERY_SECONDS)


def _record(series: dict[str, Any], sample: Sample, tags: Mapping[str, str]) -> None:
    from ray.util import metrics

    metric = sample.metric
    if metric.name not in series:
        kind = metrics.Counter if metric.counted else metrics.Gauge
        series[metric.name] = kind(metric.name, metric.help, tag_keys=(*tags, *metric.tags))
    given = {**tags, **sample.tags}
    if not metric.counted:
        series[metric.name].set(sample.value, tags=given)
    elif sample.value > 0:
        series[metric.name].inc(sample.value, tags=given)
