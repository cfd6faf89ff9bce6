"""A study: the recipe, the space that is searched, and the metric that ranks trials; checked as a whole before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.capacity import Resources, TrialSlots, trial_slots
from pipelines import config
from pipelines.config import Loaded
from pipelines.errors import RecipeError
from pipelines.run_settings import Run
from pipelines.search import space as spaces
from pipelines.search.ledger import Trial
from pipelines.search.space import Params, Space, key_of

SEED = "train.seed"
_TRIALS = 16
_ORDER = {"finished": 0, "running": 1, "stopped": 2, "failed": 3}


@dataclass(frozen=True)
class Entrant:
    """Settings to confirm: those of a trial, or the recipe's own."""

    name: str
    params: Params

    def with_seed(self, seed: int) -> Params:
        return {**self.params, SEED: seed}


@dataclass(frozen=True)
class Study:
    """A recipe with its overrides, the space that is searched, and the metric that trials are ranked by (`mode`: max or min)."""

    recipe: str
    overrides: tuple[str, ...]
    loaded: Loaded
    space: Space
    metric: str
    mode: str

    @property
    def run(self) -> Run:
        return self.loaded.run

    @property
    def method(self) -> str:
        if self.run.sweep.search:
            return self.run.sweep.search
        return "grid" if all(domain.kind == "grid" for domain in self.space.values()) else "tpe"

    @property
    def populated(self) -> bool:
        """True for Population Based Training: trials take over the weights of others, and their settings change."""
        return self.run.sweep.scheduler == "pbt"

    @cached_property
    def base(self) -> dict[str, Any]:
        """The recipe's own value of every setting: dotted key -> value."""
        return {key: row["value"] for key, row in self.loaded.settings().items()}

    def with_params(self, params: Mapping[str, Any]) -> Loaded:
        """The run of a trial. Raises RecipeError where settings do not go together."""
        return config.load(self.recipe, [*self.overrides, *spaces.overrides(params)])

    def point(self, trial: Trial) -> Params | None:
        """The point of the space at which a trial of the search lies; None for a trial outside it, or of the confirmation."""
        return self.space.fitted(trial.initial if self.populated else trial.params, self.base) if trial.role == "search" else None

    def searched(self, trials: Iterable[Trial]) -> list[Trial]:
        """The trials of the search that lie in the space, in their order."""
        return [trial for trial in trials if self.point(trial) is not None]

    def total(self, *, more: int | None, known: int, target: int) -> int:
        """The number of trials to reach: `more` than are known, unless an earlier `target` is not reached yet."""
        size = self.space.size()
        if more is not None:
            total = target if target > known else known + more
        else:
            total = self.run.sweep.trials or (size if size is not None and self.method == "grid" else _TRIALS)
        return total if size is None else min(total, size)

    def slots(self, resources: Resources) -> TrialSlots:
        """The trials that fit at once. Raises ClusterError with the arithmetic if not one does."""
        scale, sweep = self.run.scale, self.run.sweep
        if not scale.workers:
            one = "scale.workers=0: one trial at once, in this process"
            return TrialSlots(1, 1, scale.cpus or resources.cpus, float(scale.gpus or 0), one)
        limits = [limit for limit in (sweep.concurrent, sweep.trials) if limit]
        return trial_slots(resources, workers=scale.workers.most, cpus=scale.cpus, gpus=scale.gpus, most=min(limits) if limits else None)

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best first; finished trials before running, stopped and failed ones."""

        def place(trial: Trial) -> tuple[int, float, int]:
            value = trial.value(self.metric)
            if value is None or value != value:
                return _ORDER[trial.status], float("inf"), trial.number
            return _ORDER[trial.status], -value if self.mode == "max" else value, trial.number

        return sorted(trials, key=place)

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The best finished trial."""
        first = next(iter(self.ranked(trials)), None)
        return first if first and first.status == "finished" and first.value(self.metric) is not None else None

    def entrants(self, searched: Sequence[Trial]) -> tuple[list[Entrant], list[int]]:
        """The settings to confirm (the best trials' and the recipe's own), and seeds that no trial of the search has used.

        The best of many trials is lucky as well as good, so its own score is too high; other seeds and the test rows give an honest one.
        """
        best, seeds = (int(number) for number in (self.run.sweep.confirm or "1x1").split("x"))
        finished = [trial for trial in self.ranked(searched) if trial.status == "finished"]
        entrants = [Entrant(f"trial {trial.number}", trial.params) for trial in finished[:best]]
        own = {key: self.base[key] for key in self.space}
        if key_of(own) not in {key_of(entrant.params) for entrant in entrants}:
            entrants.append(Entrant("the recipe's settings", {}))
        first = self.run.train.seed + 1
        return entrants, list(range(first, first + seeds))

    def train_command(self, params: Mapping[str, Any]) -> list[str]:
        """The words that train a trial's settings alone."""
        own = [override for override in self.overrides if not override.startswith(("sweep.", "name="))]
        last = {override.partition("=")[0]: override for override in [*own, *spaces.overrides(params)]}
        return ["raylway", "train", self.recipe, *last.values()]


def study_of(recipe: str, overrides: Sequence[str]) -> Study:
    """The study that a recipe and its overrides describe. Raises RecipeError with every problem."""
    loaded = config.load(recipe, overrides)
    space = spaces.read(loaded.run.sweep.space)
    spaces.check(space, lambda more: config.load(recipe, [*overrides, *more]))
    if problems := _problems(loaded.run, space):
        raise RecipeError(*problems)
    metric, mode = _ranking(loaded.run)
    return Study(recipe, tuple(overrides), loaded, space, metric, mode)


def _problems(run: Run, space: Space) -> list[str]:
    problems = []
    if run.sweep.search == "grid" and (endless := [key for key, domain in space.items() if domain.values() is None]):
        problems.append(f"sweep.search=grid: {endless[0]} has no end of values; give grid(…), choice(…), randint or quniform")
    if run.sweep.scheduler == "pbt":
        if others := [key for key in space if not key.startswith("optim.")]:
            problems.append(f"sweep.scheduler=pbt: {others[0]} cannot change while a trial trains; it searches settings of optim.*")
        if run.scale.workers.most != 1:
            problems.append(f"sweep.scheduler=pbt: trials of a population have one worker, not scale.workers={run.scale.workers}")
    if run.scale.workers.elastic:
        problems.append(f"scale.workers={run.scale.workers}: trials have a fixed number of workers, such as {run.scale.workers.least}")
    if run.data.mode == "stream":
        problems.append("data.mode=stream: trials share prepared data; leave it out")
    if run.sweep.confirm and SEED in space:
        problems.append("sweep.confirm: tries other seeds, so train.seed cannot be searched as well")
    return problems


def _ranking(run: Run) -> tuple[str, str]:
    """(metric, mode) by which trials are compared. Raises RecipeError."""
    headline, settings = run.model.headline, run.sweep
    metric = f"val/{(settings.metric or headline.metric).removeprefix('val/')}"
    if settings.mode:
        return metric, settings.mode
    if metric == f"val/{headline.metric}":
        return metric, headline.mode
    if metric == "val/loss":
        return metric, "min"
    raise RecipeError(f"sweep.metric={metric}: say which direction is better, sweep.mode=max or sweep.mode=min")
