"""Run trials on Ray Tune, several at once, each in a warm process that is reused for the next trial.

A trial is a generator of reports; its process steps it, and closes it to stop it early. A `Controller` supplies the trials and receives
their reports: it alone decides what runs next, what stops early and what is recorded. Tune's own state is never read back.

This is Tune's *class* interface: 200 trials of 10 ms took 30 ms each on two cores. The function interface, which starts a thread for
each trial and waits for it, took 1.1 s each (Ray 2.60). Importing this module imports ray.tune: a second.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from cluster import ClusterError, ray_internals
from cluster.capacity import TrialSlots

Report = Mapping[str, Any]
Start = Callable[[Any, Path | None], Generator[Report, None, Report]]
"""`start(task, weights)` begins a trial, from another trial's weights if given; it yields reports and returns the final one.

A report has `value` (higher is better) and `validation` (a number that grows); in a population also `checkpoint` (a folder that can be
cloned) and `last` (no report follows)."""

_VALUE, _VALIDATION, _DONE, _TRIAL, _REPORT = "value", "validation", "done", "trial", "report"
_DRIVER_BYTES = 64 << 20


class Controller(Protocol):
    """Decides which trials run, and receives their reports."""

    def next(self) -> tuple[int, Any] | None:
        """(number, task) of the next trial; None if there is no more."""
        ...

    def reported(self, number: int, report: Report) -> bool:
        """Take in a report; True ends the trial now."""
        ...

    def ended(self, number: int, report: Report | None) -> None:
        """Take in the final report of a trial; None if its process was lost for good."""
        ...

    def changed(self, number: int, task: Any, donor: int) -> Any:
        """The task with which trial `number` continues from the weights of `donor` (which has `task`): Population Based Training."""
        ...


def run(
    start: Start,
    controller: Controller,
    slots: TrialSlots,
    *,
    retries: int,
    scratch: Path,
    population: Sequence[tuple[int, Any]] = (),
    every: int = 1,
) -> None:
    """Run trials until the controller has no more, `slots.at_once` at a time; one whose process dies starts again, up to `retries` times.

    With a `population`, run Population Based Training of these trials, compared after every `every` validations. Raises ClusterError if
    Tune itself fails.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in ray_internals.TUNE_SWITCHES.items()})
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(slots.at_once, len(population)))
    relay = _Relay(controller, retries=0 if population else retries)
    while True:
        _fit(start, relay, slots, scratch, population=population, every=every, retries=retries if population else 0)
        if relay.error:
            raise relay.error
        if not relay.again:
            return
        population = ()


def _fit(
    start: Start, relay: _Relay, slots: TrialSlots, scratch: Path, *, population: Sequence[tuple[int, Any]], every: int, retries: int
) -> None:
    ray_internals.keep_credentials_out_of_tune()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    resources = {"cpu": slots.cpus, "gpu": slots.gpus} if slots.workers == 1 else {"cpu": 0, "memory": _DRIVER_BYTES}
    name = uuid.uuid4().hex
    one_by_one = {"search_alg": _Searcher(relay), "scheduler": _Scheduler(relay), "num_samples": -1, "max_concurrent_trials": slots.at_once}
    together = {"scheduler": _Population(relay, every), "num_samples": 1}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, start=start), resources),
        param_space={_TRIAL: tune.grid_search([_Numbered(*each) for each in population])} if population else None,
        tune_config=tune.TuneConfig(
            metric=_VALUE,
            mode="max",
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
            trial_name_creator=lambda trial: trial.trial_id,
            **(together if population else one_by_one),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
            # with fewer, a checkpoint that is to be cloned may be gone by the time it is (Ray 2.60)
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if population else None, checkpoint_at_end=False),
            callbacks=[relay],
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:
        raise ClusterError(f"Ray Tune could not go on: {str(error).strip().splitlines()[0]}") from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


@dataclass(frozen=True)
class _Numbered:
    """A trial's number and task, as Tune hands them to its process."""

    number: int
    task: Any


class Trial(tune.Trainable):
    """A warm process that steps the generator of one trial after another."""

    _reports: Generator[Report, None, Report] | None = None
    _weights: Path | None = None

    def setup(self, config: dict[str, Any], start: Start) -> None:
        self._start = start
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._task = new_config[_TRIAL].task
        return True

    def step(self) -> dict[str, Any]:
        if self._reports is None:
            self._reports = self._start(self._task, self._weights)
        try:
            self._last = report = next(self._reports)
            done = False
        except StopIteration as end:
            report, done = end.value, True
        value, validation = report.get(_VALUE, float("nan")), report.get(_VALIDATION, 0)
        # the report in a tuple: Tune would flatten the keys of a dict
        return {_REPORT: (report,), _VALUE: value, _VALIDATION: validation, _DONE: done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        shutil.copytree(self._last["checkpoint"], Path(checkpoint_dir) / Path(self._last["checkpoint"]).name)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.cleanup()
        [self._weights] = Path(checkpoint).glob("step-*")

    def cleanup(self) -> None:
        if self._reports is not None:
            self._reports.close()
        self._reports = self._weights = None


class _Relay(tune.Callback):
    """Passes what Tune reports on to the controller, by the trial's number. An exception of the controller ends the run."""

    def __init__(self, controller: Controller, *, retries: int) -> None:
        self._controller, self._retries = controller, retries
        self._lost: Counter[int] = Counter()
        self._ended: set[int] = set()
        self.again: list[_Numbered] = []
        """Trials to start again, their process lost; Tune's own retries leave out a trial that is lost at its start (2.60)."""
        self.error: BaseException | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Keep the controller out of Tune's state: it pickles its searcher and scheduler into a file that is never read back."""
        return object, ()

    def next(self) -> dict[str, _Numbered] | None:
        """The configuration of the next trial."""
        if self.again:
            return {_TRIAL: self.again.pop(0)}
        numbered = self._guarded(self._controller.next, None)
        return None if numbered is None else {_TRIAL: _Numbered(*numbered)}

    def reported(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Pass on a report; True ends the trial now."""
        number, [report] = _number(trial), result[_REPORT]
        if self.error:
            return True
        if result[_DONE]:
            self._end(number, report)
            return True
        stop = self._guarded(lambda: self._controller.reported(number, report), True)
        if stop:
            self._end(number, {"stopped": True})
        return stop

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start a trial whose process died again, or end it after too many losses."""
        number = _number(trial)
        self._lost[number] += 1
        if self._lost[number] <= self._retries:
            self.again.append(trial.config[_TRIAL])
        else:
            self._end(number, None)

    def changed(self, trial: Any, donor: Any) -> dict[str, _Numbered]:
        """The configuration with which a trial continues from the weights of `donor`."""
        number, source = _number(trial), donor.config[_TRIAL]
        return {_TRIAL: _Numbered(number, self._guarded(lambda: self._controller.changed(number, source.task, source.number), source.task))}

    def _end(self, number: int, report: Report | None) -> None:
        if number not in self._ended:
            self._ended.add(number)
            self._guarded(lambda: self._controller.ended(number, report), None)

    def _guarded(self, call: Callable[[], Any], otherwise: Any) -> Any:
        if self.error:
            return otherwise
        try:
            return call()
        except BaseException as error:  # Tune would print it and go on, or wait for ever
            self.error = error
            return otherwise


def _number(trial: Any) -> int:
    return trial.config[_TRIAL].number


class _Searcher(Searcher):
    def __init__(self, relay: _Relay) -> None:
        super().__init__(metric=_VALUE, mode="max")
        self._relay = relay

    def suggest(self, trial_id: str) -> Any:
        config = self._relay.next()
        return Searcher.FINISHED if config is None else config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Scheduler(FIFOScheduler):
    def __init__(self, relay: _Relay) -> None:
        super().__init__()
        self._relay = relay

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP if self._relay.reported(trial, result) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._relay.reported(trial, result)


class _Population(PopulationBasedTraining):
    def __init__(self, relay: _Relay, every: int) -> None:
        # all are compared at the same validation: otherwise short trials end before there is another to be compared with
        super().__init__(_VALIDATION, perturbation_interval=every, synch=True, custom_explore_fn=lambda config: config, log_config=False)
        self._relay = relay

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if self._relay.reported(trial, result):
            return TrialScheduler.STOP
        [report] = result[_REPORT]
        if report["last"]:  # it would clone, be no better by the last validation, and clone again
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._relay.reported(trial, result)
        super().on_trial_complete(tune_controller, trial, result)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._relay.changed(trial, trial_to_clone), {}  # the controller explores; PBT itself would copy the donor's number (2.60)
