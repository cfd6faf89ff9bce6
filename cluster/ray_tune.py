"""Run trials by Ray Tune, several at once, each in a warm process that is used again for the next.

A trial is a generator that reports as it goes: here it is stepped, and closed when it is to stop early. What is tried next, what is ended
early and what is remembered is the caller's, who is asked and told through a `Conductor`. Tune's own state is never read again.

Tune's *class* interface: of 200 trials of 10 ms each took 30 ms on two cores; its function interface, which starts a thread for each
trial and waits for it, was measured at 1.1 s (Ray 2.60).
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

from cluster import ClusterError, ray_internals
from cluster.capacity import TrialSlots

Report = Mapping[str, Any]
Start = Callable[[Any, Path | None], Generator[Report, None, Report]]
"""`start(task, weights)` begins a trial, from the weights of another where there are any; it yields reports and returns what came of it.

A report has `value` (more is better), `look` (a number that grows), and for a population `checkpoint` (a folder that can be cloned) and
`last` (nothing follows)."""

_VALUE, _LOOK, _DONE, _TRIAL, _SAID = "value", "look", "done", "trial", "said"
_DRIVER_BYTES = 64 << 20


class Conductor(Protocol):
    """Who decides what is tried."""

    def next(self) -> tuple[int, Any] | None:
        """(number, task) of the next trial; None if there is no more."""
        ...

    def reported(self, number: int, report: Report) -> bool:
        """Take in a report; whether the trial is to end now."""
        ...

    def ended(self, number: int, report: Report | None) -> None:
        """Take in the last report of a trial, or None where its process was lost for good."""
        ...

    def changed(self, number: int, task: Any, donor: int) -> Any:
        """The task with which `number` goes on from the weights of `donor`, whose task is given: Population Based Training."""
        ...


def preload() -> None:
    """Import what `run` needs: a second, to be spent while the cluster starts."""
    import ray.tune  # noqa: F401


def run(
    start: Start,
    conductor: Conductor,
    slots: TrialSlots,
    *,
    retries: int,
    scratch: Path,
    population: Sequence[tuple[int, Any]] = (),
    every: int = 1,
) -> None:
    """Run trials until the conductor has no more, `slots.at_once` at a time; one whose process dies is begun again, `retries` times.

    `population` makes it Population Based Training of these trials, compared at every so many looks. Raises ClusterError if Tune itself
    fails.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in ray_internals.TUNE_SWITCHES.items()})
    ray_internals.set_pending_trials(max(slots.at_once, len(population)))
    told = _Told(conductor, retries=0 if population else retries)
    while True:
        _fit(start, told, slots, scratch, population=population, every=every, retries=retries if population else 0)
        if told.error:
            raise told.error
        if not told.again:
            return
        population = ()


def _fit(
    start: Start, told: _Told, slots: TrialSlots, scratch: Path, *, population: Sequence[tuple[int, Any]], every: int, retries: int
) -> None:
    from ray import tune
    from ray.tune.error import TuneError

    ray_internals.keep_credentials_out_of_tune()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    resources = {"cpu": slots.cpus, "gpu": slots.gpus} if slots.workers == 1 else {"cpu": 0, "memory": _DRIVER_BYTES}
    name = uuid.uuid4().hex
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable(), start=start), resources),
        param_space={_TRIAL: tune.grid_search([_Numbered(*each) for each in population])} if population else None,
        tune_config=tune.TuneConfig(
            metric=_VALUE,
            mode="max",
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
            trial_name_creator=lambda trial: trial.trial_id,
            **(_population(told, every) if population else _suggested(told, slots.at_once)),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
            # with fewer, one that is to be cloned may be gone by the time it is (Ray 2.60)
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if population else None, checkpoint_at_end=False),
            callbacks=[_losses(told)],
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:
        raise ClusterError(f"Ray Tune could not go on: {str(error).strip().splitlines()[0]}") from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


def run_here(start: Start, conductor: Conductor) -> None:
    """Run trials until the conductor has no more, one after another, in this process, Ray never imported."""
    while (given := conductor.next()) is not None:
        number, task = given
        reports = start(task, None)
        try:
            while not conductor.reported(number, next(reports)):
                pass
            reports.close()
            last: Report = {"stopped": True}
        except StopIteration as end:
            last = end.value
        conductor.ended(number, last)


@dataclass(frozen=True)
class _Numbered:
    """What Tune hands to a trial's process."""

    number: int
    task: Any


@dataclass(frozen=True)
class _Said:
    """What a trial's process hands to Tune: not as a dict, whose keys Tune would join."""

    report: Report


class _Told:
    """What Tune says, passed on to the conductor by the trial's number; an error of the conductor ends the run."""

    def __init__(self, conductor: Conductor, *, retries: int) -> None:
        self._conductor, self._retries = conductor, retries
        self._lost: Counter[int] = Counter()
        self._ended: set[int] = set()
        self.again: list[_Numbered] = []
        """Trials whose process was lost and that are to be begun again; Tune's own retries leave out one lost at its start (2.60)."""
        self.error: BaseException | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its searcher and scheduler into a file that is never read again: what they hold stays out of it."""
        return object, ()

    def next(self) -> dict[str, _Numbered] | None:
        """The configuration of the next trial."""
        if self.again:
            return {_TRIAL: self.again.pop(0)}
        given = self._guarded(self._conductor.next, None)
        return None if given is None else {_TRIAL: _Numbered(*given)}

    def reported(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Whether the trial is to end now."""
        number = _number(trial)
        if self.error:
            return True
        if result[_DONE]:
            self._end(number, result[_SAID].report)
            return True
        stop = self._guarded(lambda: self._conductor.reported(number, result[_SAID].report), True)
        if stop:
            self._end(number, {"stopped": True})
        return stop

    def lost(self, trial: Any) -> None:
        number = _number(trial)
        self._lost[number] += 1
        if self._lost[number] <= self._retries:
            self.again.append(trial.config[_TRIAL])
        else:
            self._end(number, None)

    def changed(self, trial: Any, donor: Any) -> dict[str, _Numbered]:
        """The configuration with which a trial goes on from the weights of `donor`."""
        number, given = _number(trial), donor.config[_TRIAL]
        return {_TRIAL: _Numbered(number, self._guarded(lambda: self._conductor.changed(number, given.task, given.number), given.task))}

    def _end(self, number: int, report: Report | None) -> None:
        if number not in self._ended:
            self._ended.add(number)
            self._guarded(lambda: self._conductor.ended(number, report), None)

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


def _trainable() -> type:
    from ray.tune import Trainable

    class Trial(Trainable):
        """Steps the generator of one trial after another."""

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
                report = next(self._reports)
            except StopIteration as end:
                return {_SAID: _Said(end.value), _VALUE: end.value.get(_VALUE, float("nan")), _LOOK: end.value.get(_LOOK, 0), _DONE: True}
            self._last = report
            return {_SAID: _Said(report), _VALUE: report[_VALUE], _LOOK: report[_LOOK], _DONE: False}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            shutil.copytree(self._last["checkpoint"], Path(checkpoint_dir) / Path(self._last["checkpoint"]).name)

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.cleanup()
            [self._weights] = Path(checkpoint).glob("step-*")

        def cleanup(self) -> None:
            if self._reports is not None:
                self._reports.close()
            self._reports = self._weights = None

    return Trial


def _suggested(told: _Told, at_once: int) -> dict[str, Any]:
    """Tune's settings for trials that come one after another."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class Asking(Searcher):
        def suggest(self, trial_id: str) -> Any:
            task = told.next()
            return Searcher.FINISHED if task is None else task

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    class Asked(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return TrialScheduler.STOP if told.reported(trial, result) else TrialScheduler.CONTINUE

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            told.reported(trial, result)

    return {"search_alg": Asking(metric=_VALUE, mode="max"), "scheduler": Asked(), "num_samples": -1, "max_concurrent_trials": at_once}


def _population(told: _Told, every: int) -> dict[str, Any]:
    """Tune's settings for a population; scores come with the sign by which more is better."""
    from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

    class Population(PopulationBasedTraining):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if told.reported(trial, result):
                return TrialScheduler.STOP
            if result[_SAID].report["last"]:  # it would clone, be no better by the last look, and clone again
                return TrialScheduler.CONTINUE
            return super().on_trial_result(tune_controller, trial, result)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            told.reported(trial, result)
            super().on_trial_complete(tune_controller, trial, result)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return told.changed(trial, trial_to_clone), {}  # the caller's way of exploring; PBT's own would copy the donor's number (2.60)

    # all are compared at the same look: otherwise short trials end before there is another to be compared with
    how = {"time_attr": _LOOK, "perturbation_interval": every, "synch": True}
    scheduler = Population(**how, custom_explore_fn=lambda config: config, log_config=False)
    return {"scheduler": scheduler, "num_samples": 1}


def _losses(told: _Told) -> Any:
    from ray.tune import Callback

    class Losses(Callback):
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            told.lost(trial)

    return Losses()
