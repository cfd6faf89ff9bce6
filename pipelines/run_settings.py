"""The settings of a run: the tree of its groups, the checks between groups, and the values derived from them."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SerializeAsAny, model_validator

from pipelines.errors import nearest
from pipelines.settings import Data, Name, Optim, Promote, Scale, Settings, Sweep, Track, Train
from pipelines.tracking.provenance import code_sha256, imported
from workloads.base import Workload


def _possible_path(path: str) -> str:
    try:
        Path(path).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"not a valid path: {error}") from None
    return path


class Run(Settings):
    """All settings of a run."""

    recipe: Name
    """The recipe's name."""
    workload: str
    """A file of workloads/ (cnn), or module:Class inside it."""
    model: SerializeAsAny[Workload]
    """The workload's own settings."""
    data: Data
    optim: Optim = Optim()
    train: Train
    scale: Scale = Scale()
    track: Track = Track()
    sweep: Sweep = Sweep()
    promote: Promote = Promote()
    storage: Annotated[str, AfterValidator(_possible_path)] = "./runs"
    """Folder for runs, prepared data and the embedded MLflow; every node must reach it."""
    name: Name | None = None
    """Name of the run; default: made of recipe, data and settings."""

    @model_validator(mode="after")
    def _everyone_has_work(self) -> Run:
        size = self.micro_batch
        if self.scale.workers.most > -(-self.train.batch // size):
            raise ValueError(
                f"train.batch={self.train.batch} in micro-batches of {size} leaves some of scale.workers={self.scale.workers} without rows"
            )
        return self

    @model_validator(mode="after")
    def _can_be_streamed(self) -> Run:
        if self.data.mode == "stream":
            if self.scale.workers.elastic:
                raise ValueError(f"data.mode=stream needs a fixed number of workers; scale.workers={self.scale.workers} is a range")
            if not self.scale.workers:
                raise ValueError("data.mode=stream reads by Ray Data, so it needs scale.workers=1 or more")
            if self.model.ordered:
                raise ValueError(f"data.mode=stream: {self.model.task} needs consecutive rows; a stream has no order")
            if self.train.batch % (self.micro_batch * self.scale.workers.most):
                raise ValueError(
                    f"data.mode=stream: train.batch={self.train.batch} must be a multiple of {self.micro_batch} rows (one micro-batch) x "
                    f"{self.scale.workers} workers, so that all workers end an epoch at the same step"
                )
        return self

    @model_validator(mode="after")
    def _metrics_exist(self) -> Run:
        better, rules = self.model.better, self.promote
        named: list[tuple[str, str, str | None]]
        named = [(f"promote.{end}.{name}", name, end) for end in ("min", "max") for name in getattr(rules, end)]
        named += [(f"promote.slices.{column}.{name}", name, None) for column, floors in rules.slices.items() for name in floors]
        named += [("promote.metric", rules.metric, None)] if rules.metric else []
        for key, name, end in named:
            direction = better.get(name.rpartition("/")[2])
            if direction is None:
                raise ValueError(f"{key}: {self.model.task} has no such metric{nearest(name, better)}; there are: {', '.join(better)}")
            if end == direction:  # what is better the larger has a least value
                better_is, other = ("more", "min") if direction == "max" else ("less", "max")
                raise ValueError(f"{key}: of {name} {better_is} is better; write promote.{other}.{name}")
        return self

    @property
    def micro_batch(self) -> int:
        """Rows of one forward pass."""
        return self.train.micro_batch or -(-self.train.batch // max(self.scale.workers.most, 1))

    @property
    def experiment(self) -> str:
        return self.track.experiment or self.recipe

    @property
    def model_name(self) -> str | None:
        """Name of the registered model; None where the run registers none."""
        return None if self.track.register_ is False else (self.track.register_ or self.recipe)

    @property
    def root(self) -> Path:
        return Path(self.storage).expanduser().resolve()

    @property
    def summary(self) -> str:
        """The run in one line: workload, data, length, batch and workers."""
        length = f"{self.train.epochs} epochs" if self.train.epochs else f"{self.train.steps:,} steps"
        where = f"{self.scale.workers} worker{'s' * (self.scale.workers.most > 1)}" if self.scale.workers else "this process"
        return f"{self.workload} on {self.data.name}, {length}, batch {self.train.batch}, {where}"

    @property
    def network_code(self) -> str:
        """Hash of the network's source files: its own and those of workloads/layers that it imports."""
        network = Path(inspect.getfile(type(self.model)))
        layers = {file for file in imported(network, nested=True) if file.parent.name == "layers"}
        return code_sha256({network, *layers})

    def steps(self, rows: int) -> int:
        """Optimizer steps of the whole run over `rows` training examples."""
        return self.train.steps or -(-(self.train.epochs or 0) * rows // self.train.batch)

    def steps_per_epoch(self, rows: int) -> int:
        """Steps that take each row once, rounded up; where the last batch is not full it also has the first rows of the next epoch."""
        return -(-rows // self.train.batch)

    def identity(self, fingerprint: str) -> str:
        """Hash of all that decides the weights: not of machines, storage or the intervals of logging.

        The network's own code is in it: the same command after an edit of that code is a new run. (The task's code is in `fingerprint`.)
        """
        decides = {
            "workload": self.workload,
            "code": self.network_code,
            "model": self.model.model_dump(mode="json"),
            "data": fingerprint,
            "optim": self.optim.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude={"log_every", "eval_every", "checkpoint_every", "keep"}),
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
