"""The facts of a sweep, one JSON line each, appended before anything is done about them; all that is needed to go on after a kill.

Ray Tune's own state is pickled and written in place, so it is never read. A trial that is begun and not ended was interrupted: it goes
on from its checkpoint. One that ended is a fact, and is not run again.

Optuna's JournalStorage cannot take this file's place (5.0): a finished trial takes no more facts (a lost trial that starts again, the run
id once all of it is in MLflow), a study refuses a categorical whose choices change (a changed space), and a line torn by a crash is
neither cut off nor ended, so that the next one is lost with it.
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
    """The facts of one trial. `validations`: number of the validation -> its metrics."""

    number: int
    params: dict[str, Any]
    """Its settings now; a population changes them."""
    initial: dict[str, Any]
    """Its settings at the beginning."""
    role: Role = "search"
    status: Status = "running"
    validations: dict[int, dict[str, float]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cause: str = ""
    code: int = 0
    run_id: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)
    """The rest of its process's final report: weights_sha256, checkpoint, steps …"""

    @property
    def ended(self) -> bool:
        return self.status != "running"

    @property
    def last_scores(self) -> dict[str, float]:
        """The metrics of the last validation, which are those of the trial's last weights."""
        return dict(self.validations[max(self.validations)]) if self.validations else {}

    def value(self, metric: str) -> float | None:
        """The metric at the last validation; None for a trial that failed or has not got so far."""
        return self.last_scores.get(metric) if self.status != "failed" else None


class Ledger:
    """Appends facts to the file at `path`, and knows all trials. One writer at a time; a line torn by a crash is cut off."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        complete = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(complete)
        self.trials: dict[int, Trial] = {}
        self.target = 0
        """Number of trials that the last command asked for in all."""
        for line in path.read_bytes().splitlines():
            self._apply(json.loads(line))

    def aim(self, trials: int) -> None:
        self._write({"event": "target", "trials": trials})

    def begin(self, params: Mapping[str, Any], role: Role = "search") -> Trial:
        """A new trial, numbered on from the last."""
        number = len(self.trials)
        self._write({"event": "begun", "trial": number, "params": dict(params), "role": role})
        return self.trials[number]

    def reopen(self, number: int) -> None:
        """A trial whose process was lost starts again."""
        self._write({"event": "reopened", "trial": number})

    def validated(self, number: int, validation: int, scores: Mapping[str, float]) -> None:
        self._write({"event": "look", "trial": number, "look": validation, "scores": _plain(scores)}, sync=False)

    def change(self, number: int, params: Mapping[str, Any], donor: int) -> None:
        """The trial continues with other settings and the weights of `donor`."""
        self._write({"event": "changed", "trial": number, "params": dict(params), "donor": donor})

    def end(self, number: int, status: Status, *, seconds: float, outcome: Mapping[str, Any], cause: str = "", code: int = 0) -> None:
        outcome = dict(outcome)
        metrics = _plain(outcome.pop("metrics", {}))
        fact = {"event": "ended", "trial": number, "status": status, "seconds": round(seconds, 3), "metrics": metrics}
        self._write(fact | {"told": outcome, "cause": cause, "code": code})

    def tracked(self, number: int, run_id: str) -> None:
        """All of the trial is in MLflow."""
        self._write({"event": "tracked", "trial": number, "run_id": run_id})

    def close(self) -> None:
        self._file.close()

    def _write(self, fact: dict[str, Any], *, sync: bool = True) -> None:
        self._apply(fact)
        self._file.write((json.dumps(fact | {"time": round(time.time(), 3)}) + "\n").encode())
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def _apply(self, fact: Mapping[str, Any]) -> None:
        if fact["event"] == "target":
            self.target = fact["trials"]
            return
        if fact["event"] == "begun":
            self.trials[fact["trial"]] = Trial(fact["trial"], dict(fact["params"]), dict(fact["params"]), fact["role"])
            return
        trial = self.trials[fact["trial"]]
        if fact["event"] == "look":
            trial.validations[fact["look"]] = {name: float(value) for name, value in fact["scores"].items()}
        elif fact["event"] == "changed":
            trial.params = dict(fact["params"])
        elif fact["event"] == "reopened":
            trial.status, trial.cause, trial.code = "running", "", 0
        elif fact["event"] == "tracked":
            trial.run_id = fact["run_id"]
        elif fact["event"] == "ended":
            trial.status, trial.seconds, trial.cause, trial.code = fact["status"], fact["seconds"], fact["cause"], fact["code"]
            trial.metrics = {name: float(value) for name, value in fact["metrics"].items()}
            trial.outcome, trial.run_id = dict(fact["told"]), ""  # what was sent of it before is not all


def _plain(scores: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers as JSON can hold them: NaN and infinity as text."""
    return {name: float(value) if abs(value) < float("inf") else str(float(value)) for name, value in scores.items()}
