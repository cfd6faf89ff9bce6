"""The facts of a sweep, one JSON line each, appended before anything is done about them; all that is needed to go on after a kill.

Ray Tune's own state is pickled and written in place, so it is never read. A trial that is begun and not ended was interrupted: it goes
on from its checkpoint. One that ended is a fact, and is not run again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["running", "finished", "stopped", "failed"]
Role = Literal["search", "confirm"]


@dataclass
class Trial:
    """What is known of one trial. `looks`: number of the look -> metrics of the validation rows."""

    number: int
    params: dict[str, Any]
    """What it has now; a population's change."""
    first: dict[str, Any]
    """What it began with."""
    role: Role = "search"
    status: Status = "running"
    looks: dict[int, dict[str, float]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cause: str = ""
    code: int = 0
    run_id: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    """What its process said at the end: weights_sha256, checkpoint, steps …"""

    @property
    def ended(self) -> bool:
        return self.status != "running"

    def value(self, metric: str) -> float | None:
        """The metric at the last look, which is what the trial's last weights are worth."""
        return self.looks[max(self.looks)].get(metric) if self.looks and self.status != "failed" else None


class Ledger:
    """Appends facts to the file at `path`, and knows all trials. One writer at a time; a line torn by a crash is cut off."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        whole = path.read_bytes()
        self._file.truncate(whole.rfind(b"\n") + 1)
        self.trials: dict[int, Trial] = {}
        self.target = 0
        """Trials that were asked for in all, the last time it was said."""
        for line in path.read_bytes().splitlines():
            self._learn(json.loads(line))

    def aim(self, trials: int) -> None:
        self._write({"event": "target", "trials": trials})

    def begin(self, params: Mapping[str, Any], role: Role = "search") -> Trial:
        """A new trial, numbered on from the last."""
        number = len(self.trials)
        self._write({"event": "begun", "trial": number, "params": dict(params), "role": role})
        return self.trials[number]

    def reopen(self, number: int) -> None:
        """A trial whose process was lost is begun again."""
        self._write({"event": "reopened", "trial": number})

    def look(self, number: int, look: int, scores: Mapping[str, float]) -> None:
        self._write({"event": "look", "trial": number, "look": look, "scores": _plain(scores)}, sync=False)

    def change(self, number: int, params: Mapping[str, Any], donor: int) -> None:
        """The trial goes on with other settings and the weights of `donor`."""
        self._write({"event": "changed", "trial": number, "params": dict(params), "donor": donor})

    def end(self, number: int, status: Status, *, seconds: float, told: Mapping[str, Any], cause: str = "", code: int = 0) -> None:
        told = dict(told)
        metrics = _plain(told.pop("metrics", {}))
        fact = {"event": "ended", "trial": number, "status": status, "seconds": round(seconds, 3), "metrics": metrics}
        self._write(fact | {"told": told, "cause": cause, "code": code})

    def tracked(self, number: int, run_id: str) -> None:
        """All of the trial is in MLflow."""
        self._write({"event": "tracked", "trial": number, "run_id": run_id})

    def close(self) -> None:
        self._file.close()

    def _write(self, fact: dict[str, Any], *, sync: bool = True) -> None:
        self._learn(fact)
        self._file.write((json.dumps(fact | {"time": round(time.time(), 3)}) + "\n").encode())
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def _learn(self, fact: Mapping[str, Any]) -> None:
        if fact["event"] == "target":
            self.target = fact["trials"]
            return
        if fact["event"] == "begun":
            self.trials[fact["trial"]] = Trial(fact["trial"], dict(fact["params"]), dict(fact["params"]), fact["role"])
            return
        trial = self.trials[fact["trial"]]
        if fact["event"] == "look":
            trial.looks[fact["look"]] = {name: float(value) for name, value in fact["scores"].items()}
        elif fact["event"] == "changed":
            trial.params = dict(fact["params"])
        elif fact["event"] == "reopened":
            trial.status, trial.cause, trial.code = "running", "", 0
        elif fact["event"] == "tracked":
            trial.run_id = fact["run_id"]
        elif fact["event"] == "ended":
            trial.status, trial.seconds, trial.cause, trial.code = fact["status"], fact["seconds"], fact["cause"], fact["code"]
            trial.metrics = {name: float(value) for name, value in fact["metrics"].items()}
            trial.told, trial.run_id = dict(fact["told"]), ""  # what was sent of it before is not all


def _plain(scores: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers as JSON has them: it knows neither NaN nor infinity."""
    return {name: float(value) if abs(value) < float("inf") else str(float(value)) for name, value in scores.items()}
