"""Plan: settings and their origin, batches, memory, resources and problems of a run, before anything is started."""

from __future__ import annotations

from typing import Any

from cluster import ClusterError, capacity, session
from pipelines.config import Loaded
from pipelines.data import preparation as preparing
from pipelines.data.order import micro_batches
from pipelines.errors import RecipeError, StorageError
from pipelines.run_record import check_writable
from pipelines.run_settings import Run
from pipelines.screen import Screen
from pipelines.tracking import client, provenance
from workloads.base import DataError

_ADAM_STATES, _SGD_STATES = 2, 1
_FLOAT_BYTES = 4


def plan(loaded: Loaded, screen: Screen) -> dict[str, Any]:
    """The plan of `raylway train` as JSON; `problems` lists what would stop it."""
    run = loaded.run
    result: dict[str, Any] = {"settings": loaded.settings(), "batch": _batch(run), "problems": []}
    for look in (_resources, _data, _storage):
        try:
            result |= look(run)
        except (RecipeError, DataError, ClusterError, StorageError) as error:
            result["problems"].append(str(error))
    _show(result, screen)
    return result


def _batch(run: Run) -> dict[str, int | str]:
    world = max(run.scale.workers.most, 1)
    share = micro_batches(run.train.batch, run.micro_batch, rank=world - 1, world_size=world)
    return {"global": run.train.batch, "micro": run.micro_batch, "accumulation": len(share), "workers": run.scale.workers.written}


def _resources(run: Run) -> dict[str, Any]:
    if session.address():
        return {"resources": {"cluster": session.address(), "workers": run.scale.workers.written}}
    there, scale = session.local_resources(), run.scale
    cpus, gpus = capacity.worker_share(there, scale)
    size = min(scale.workers.most, capacity.fits(there.each_node, cpus=cpus, gpus=gpus))
    return {
        "resources": {
            "cluster": "this machine",
            "workers": scale.workers.written,
            "cpus": cpus * max(size, 1),
            "gpus": gpus * max(size, 1),
            "threads_per_worker": run.scale.threads or cpus,
            "cpus_there": there.cpus,
        }
    }


def _data(run: Run) -> dict[str, Any]:
    data = preparing.plan(run)
    encoding = preparing.peek(run, data)
    rows = preparing.count(run, data)
    import torch

    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in run.model.network(encoding).parameters())
    return {
        "parameters": parameters,
        "memory": {"weights_gradients_and_optimizer_bytes": _state_bytes(run, parameters)},
        "steps": run.train.steps or (rows["train"] and run.steps(rows["train"])),
        "data": {
            "source": run.data.name,
            "fingerprint": data.fingerprint,
            "prepared": data.ready,
            "rows": rows,
            "encoding": encoding.model_dump(mode="json"),
        },
    }


def _state_bytes(run: Run, parameters: int) -> int:
    """Bytes of weights, gradients and optimizer state on a worker: all of them, or with fsdp its share among the fewest workers allowed."""
    states = _SGD_STATES if run.optim.name == "sgd" else _ADAM_STATES
    shares = max(run.scale.workers.least, 1) if run.scale.strategy == "fsdp" else 1
    return (2 + states) * _FLOAT_BYTES * -(-parameters // shares)


def _storage(run: Run) -> dict[str, Any]:
    check_writable(run.root)
    uri = client.tracking_uri(run.root, run.track.uri)
    client.check(uri)
    return {"tracking_uri": provenance.redact(uri), "storage": str(run.root)}


def _show(result: dict[str, Any], screen: Screen) -> None:
    rows = [[key, row["value"], row["origin"]] for key, row in result["settings"].items()]
    screen.table("settings", ["key", "value", "origin"], rows)
    batch = result["batch"]
    screen.say(
        f"batch      {batch['global']} rows = up to {batch['accumulation']} micro-batches of {batch['micro']} on each of "
        f"{batch['workers'] or 'this process, 1'} worker(s)"
    )
    if "data" in result:
        data = result["data"]
        counts = ", ".join(f"{'?' if count is None else f'{count:,}'} {split}" for split, count in data["rows"].items())
        screen.say(f"data       {data['source']}: {counts}; dataset {data['fingerprint']} is {'' if data['prepared'] else 'not '}prepared")
        state = result["memory"]["weights_gradients_and_optimizer_bytes"]
        screen.say(
            f"network    {result['parameters']:,} parameters; {state / 2**20:,.1f} MiB with gradients and optimizer state on each worker"
        )
        screen.say(f"length     {result['steps']:,} steps" if result["steps"] else "length     known when the data are prepared")
    if "resources" in result:
        screen.say("resources  " + ", ".join(f"{name} {value}" for name, value in result["resources"].items()))
    if "storage" in result:
        screen.say(f"kept in    {result['storage']}, tracked at {result['tracking_uri']}")
    for problem in result["problems"]:
        screen.say(f"problem    {problem}")
