"""Suggest the settings of trials and decide which end early, by Optuna's samplers and pruners.

A suggestion is a function of (seed, number of the trial, facts): the sampler is made anew for each, so a sweep that was killed continues
with the suggestions it would have made. Early stopping is Optuna's too, because Ray Tune's schedulers keep their state in memory only.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipelines.search.ledger import Trial
from pipelines.search.space import Domain, Params, Space, key_of

_ATTEMPTS = 200
_REDUCTION = 3  # of three trials at a rung one goes on (Li et al., 2020)
_STARTUP_TRIALS = 4
optuna.logging.set_verbosity(logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class Search:
    """Suggests points of a space and learns from their results. `mode`: max or min."""

    def __init__(self, space: Space, *, mode: str, method: str, scheduler: str, grace: int, seed: int) -> None:
        self._space, self._method, self._seed = space, method, seed
        self._distributions = {key: _distribution(domain) for key, domain in space.items()}
        pruners: dict[str, optuna.pruners.BasePruner] = {
            "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=_REDUCTION),
            "median": optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=grace),
        }
        self._study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize", pruner=pruners.get(scheduler, optuna.pruners.NopPruner())
        )
        self._seen: set[str] = set()
        self._trials: dict[int, optuna.Trial] = {}
        self._prunes = scheduler in pruners

    def replay(self, known: Iterable[tuple[Trial, Params]], metric: str) -> None:
        """Take in known trials, ended or running, in their order, each with its point of the space."""
        for trial, point in known:
            self._begin(trial.number, point)
            for validation, scores in sorted(trial.validations.items()):
                if metric in scores:
                    self.report(trial.number, validation, scores[metric])
            if trial.ended:
                self.end(trial.number, trial.value(metric), stopped=trial.status == "stopped")

    def suggest(self, number: int) -> Params | None:
        """The point of trial `number`, untried so far; None where there is none left."""
        if self._method == "grid":
            point = next((each for each in self._space.points(list(self._space)) if key_of(each) not in self._seen), None)
            if point is not None:
                self._begin(number, point)
            return point
        axes = list(self._space.points(self._space.axes))
        for attempt in range(_ATTEMPTS):
            trial, point = self._sampled(number, attempt, axes[(number + attempt) % len(axes)])
            if key_of(point) not in self._seen:
                self._seen.add(key_of(point))
                self._trials[number] = trial
                return point
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if self._space.size() is not None and len(self._seen) >= (self._space.size() or 0):
                return None
        return None

    def report(self, number: int, validation: int, value: float) -> bool:
        """Take in a value; True ends the trial now."""
        if math.isnan(value):
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trials[number].report(value, validation)
        return self._prunes and self._trials[number].should_prune()

    def end(self, number: int, value: float | None, *, stopped: bool) -> None:
        """Take in the value that a trial ended with, if it has one."""
        if value is None or math.isnan(value):
            self._study.tell(self._trials[number], state=optuna.trial.TrialState.FAIL)
        elif stopped:
            self._study.tell(self._trials[number], state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(self._trials[number], value)

    def preload(self) -> None:
        """Import the modules of `importance`: a second, for Optuna brings scikit-learn with it."""
        import optuna.importance  # noqa: F401

    def importance(self) -> dict[str, float]:
        """Share of the differences that each setting explains so far, the greatest first; empty while it cannot be computed."""
        complete = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
            return {}
        try:
            return optuna.importance.get_param_importances(self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}

    def _begin(self, number: int, point: Params) -> None:
        self._seen.add(key_of(point))
        self._study.enqueue_trial(_coded(self._space, point))
        self._trials[number] = self._study.ask(self._distributions)

    def _sampled(self, number: int, attempt: int, fixed: Params) -> tuple[optuna.Trial, Params]:
        seed = (self._seed * 1_000_003 + number * 1009 + attempt) % 2**32
        random = self._method == "random" or attempt > _ATTEMPTS // 2  # a sampler that is sure of itself suggests known points
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed=seed) if random else optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        )
        if fixed:
            self._study.enqueue_trial(_coded(self._space, fixed))
        trial = self._study.ask(self._distributions)
        return trial, {key: _decoded(self._space[key], trial.params[key]) for key in self._space}


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.listed:  # by their numbers, because Optuna takes 1, 1.0 and True for the same
        return CategoricalDistribution(range(len(domain.options)))
    if domain.kind == "randint":
        return IntDistribution(int(domain.low), int(domain.high) - 1)
    if domain.step:
        return IntDistribution(0, len(domain.values() or ()) - 1)
    return FloatDistribution(domain.low, domain.high, log=domain.kind == "loguniform")


def _coded(space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    return {key: space[key].place(value) if space[key].listed or space[key].step else value for key, value in point.items()}


def _decoded(domain: Domain, coded: Any) -> Any:
    return (domain.values() or [])[coded] if domain.listed or domain.step else coded
