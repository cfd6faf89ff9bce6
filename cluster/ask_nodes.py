"""Ask every node of a cluster the same at once, and wait no longer than is said: a node that is silent is an answer too.

A question takes no CPU, so a busy cluster answers as soon as an idle one; its functions travel by value, because a node that was started
by `ray start` may have nothing of this repository.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster import ray_internals
from cluster.nodes import Node


@dataclass(frozen=True)
class Round:
    """What came back: node's id -> its answer, and node's id -> why there is none."""

    answers: Mapping[str, Any]
    silent: Mapping[str, str] = field(default_factory=dict)


def ask(
    nodes: Iterable[Node], question: Callable[..., Any], told: Callable[[Node], tuple[Any, ...]] = lambda node: (), *, seconds: float
) -> Round:
    """`question(*told(node))` on each node, all at once, for at most `seconds`."""
    return gather({node.id: send(node, question, *told(node)) for node in nodes}, seconds=seconds)


def send(node: Node, question: Callable[..., Any], *arguments: Any, gpus: float = 0, alone: bool = False) -> Any:
    """Put a question to a node; what stands for its answer. `alone`: in a process that ends after it."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for module in (sys.modules[question.__module__], ray_internals):
        cloudpickle.register_pickle_by_value(module)
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, max_calls=int(alone))(question)
    return task.options(scheduling_strategy=there, name=f"doctor: {question.__name__}").remote(*arguments)


def gather(asked: Mapping[str, Any], *, seconds: float) -> Round:
    """The answers that are there within `seconds`, by name; those that are not are given up."""
    import ray

    _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    answers: dict[str, Any] = {}
    silent: dict[str, str] = {}
    for name, reference in asked.items():
        if reference in late:
            silent[name] = f"no answer within {seconds:g} s"
            ray.cancel(reference, force=True)
            continue
        try:
            answers[name] = ray.get(reference)
        except Exception as error:  # what a node raises is an answer: it is told, and ends nothing here
            silent[name] = _sentence(error)
    return Round(answers, silent)


def _sentence(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ": ".join([type(cause).__name__, *lines[:1]])[:300]
