"""Control the trials of a sweep: make each a run of its own, record its facts, follow it in MLflow, and end the sweep at a common bug."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from cluster.capacity import TrialSlots
from pipelines import publish
from pipelines.config import Loaded
from pipelines.data.store import store_of
from pipelines.errors import CLUSTER, DATA, RECIPE, WORKLOAD, Failure, RecipeError, code_of
from pipelines.process import in_background
from pipelines.run_record import RunFolder, begin, write_config
from pipelines.run_settings import Run
from pipelines.run_states import FINGERPRINT, IDENTITY
from pipelines.search import sweep_report
from pipelines.search.ledger import Ledger, Role, Status, Trial
from pipelines.search.space import Params, name_of
from pipelines.search.study import Study
from pipelines.tracking.client import NOTE
from pipelines.tracking.journal import Journal
from pipelines.tracking.shipper import Tracker
from pipelines.tracking.sweep_tracker import SweepTracker
from pipelines.training.job import Job, Task
from workloads.base import DataError

if TYPE_CHECKING:
    from pipelines.search.suggest import Search

_ALIKE = 3
_BUGS = (WORKLOAD, RECIPE, DATA)


@dataclass(frozen=True)
class Phase:
    """The search, or the confirmation of its best: `total` trials, the `known` included; `suggest` gives the settings of the others."""

    role: Role
    known: Sequence[Trial]
    total: int
    suggest: Callable[[int], Params | None]
    search: Search | None = None
    """Learns from the results, and ends poor trials early; None in a confirmation."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints where each validation must have one: a population clones at validations."""


class Controller:
    """Controls the trials of a phase, for cluster.ray_tune or `run_here`. `prepare` gives the fingerprint of a run's prepared data."""

    def __init__(
        self, study: Study, ledger: Ledger, tracker: SweepTracker, phase: Phase, slots: TrialSlots, prepare: Callable[[Run], str]
    ) -> None:
        self._study, self._ledger, self._sweep, self._phase, self._prepare = study, ledger, tracker, phase, prepare
        self._folder, self._say = tracker.folder, tracker.say
        self._threads, self._gpus = study.run.scale.threads or slots.cpus, slots.gpus
        self._waiting, self._begun = [trial for trial in phase.known if not trial.ended], len(phase.known)
        self._locks: dict[int, ExitStack] = {}
        self._started: dict[int, float] = {}
        self._failures: list[str] = []
        self._changes: Counter[int] = Counter()
        self._freed: set[int] = set()
        self._journal = Journal(self._folder.journal)
        self.total = phase.total
        self.stopping = False
        self.bug: Failure | None = None
        """The failure that the first trials have in common, which ends the sweep."""
        for trial in self.trials:
            if trial.ended and not trial.run_id:  # the process was killed before MLflow had all of it
                self._follow(trial)
                self._close(trial)

    @property
    def trials(self) -> list[Trial]:
        """The trials of this phase, in their order."""
        return [trial for trial in list(self._ledger.trials.values()) if trial.role == self._phase.role]

    # ---- called by Ray Tune

    def next(self) -> tuple[int, Task] | None:
        while not self.stopping:
            trial = self._waiting.pop(0) if self._waiting else self._new()
            if trial is None:
                if self._phase.search:
                    in_background(self._phase.search.preload)  # the last are under way, and the others' cores are free
                return None
            try:
                return trial.number, self._task(trial)
            except (RecipeError, DataError) as error:
                self._follow(trial)
                self._fail(trial, code_of(error), str(error))
        return None

    def reported(self, number: int, report: Mapping[str, Any]) -> bool:
        trial, validation, scores = self._ledger.trials[number], report["validation"], report["scores"]
        if validation > max(trial.validations, default=0):  # a resumed trial repeats validations
            self._ledger.validated(number, validation, scores)
            if self._phase.search and self._phase.search.report(number, validation, scores[self._study.metric]):
                return True
        return self.stopping

    def ended(self, number: int, report: Mapping[str, Any] | None) -> None:
        trial = self._ledger.trials[number]
        if self.stopping and report and report.get("stopped"):
            return  # interrupted: it goes on from its checkpoint the next time
        if report is None:
            retries = self._study.run.scale.retries
            self._fail(trial, CLUSTER, f"its process died {retries + 1} times (scale.retries={retries})")
        elif report.get("stopped"):
            self._end(trial, "stopped", {"metrics": trial.last_scores})
        elif "failed" in report:
            self._end(trial, "failed", {}, Failure(**report["failed"]))
        else:
            self._end(trial, "finished", report)

    def changed(self, number: int, task: Task, donor: int) -> Task:
        """Population Based Training: the donor's settings, each a little changed, for a trial that takes over its weights."""
        self._changes[number] += 1
        random = Random(f"{self._study.run.sweep.seed} {number} {self._changes[number]}")
        params = {key: self._study.space[key].changed(value, random) for key, value in self._ledger.trials[donor].params.items()}
        self._ledger.change(number, params, donor)
        self._say(f"trial {number} goes on with the weights of trial {donor} and {name_of(params)}")
        run, folder = self._settings(params).run, folder_of(self._folder, number)
        return replace(task, job=replace(task.job, run=run, folder=folder, identity=self._identity(number, run, task.job.fingerprint)))

    # ---- the run of a trial

    def _new(self) -> Trial | None:
        if self._begun >= self.total:
            return None
        params = self._phase.suggest(len(self._ledger.trials))
        if params is None:
            self._say(f"every point of the space was tried: {self._begun} trials, not {self.total}")
            self.total = self._begun
            return None
        self._begun += 1
        return self._ledger.begin(params, self._phase.role)

    def _settings(self, params: Mapping[str, Any]) -> Loaded:
        loaded = self._study.with_params(params)
        if every := self._phase.checkpoint_every:
            train = loaded.run.train.model_copy(update={"checkpoint_every": every, "keep": max(4, loaded.run.train.keep)})
            loaded = replace(loaded, run=loaded.run.model_copy(update={"train": train}))
        return loaded

    def _task(self, trial: Trial) -> Task:
        """Open the trial's run: its folder, locked, and its run in MLflow. Raises RecipeError, DataError."""
        loaded = self._settings(trial.params)
        run, fingerprint = loaded.run, self._prepare(loaded.run)
        folder = folder_of(self._folder, trial.number)
        lock = self._locks[trial.number] = ExitStack()
        lock.enter_context(folder.locked("driver", wait_seconds=5))
        identity = self._identity(trial.number, run, fingerprint)
        folder.write(IDENTITY, identity)
        folder.write(FINGERPRINT, fingerprint)
        self._track(trial, loaded, fingerprint, folder)
        self._started[trial.number] = time.monotonic()
        job = Job(run, folder, store_of(run.data, run.root), fingerprint, identity, self._threads)
        sign = 1 if self._study.mode == "max" else -1
        return Task(job, self._study.metric, sign, "test" if self._phase.role == "confirm" else "validation", self._gpus)

    def _follow(self, trial: Trial) -> None:
        """Open the run in MLflow of a trial that does not train here, or whose settings are not valid for a run."""
        try:
            loaded = self._settings(trial.params)
            fingerprint = self._prepare(loaded.run)
        except (RecipeError, DataError):
            loaded, fingerprint = self._study.loaded, self._prepare(self._study.run)
        folder = folder_of(self._folder, trial.number)
        if folder.read(IDENTITY) is None:
            folder.write(IDENTITY, self._identity(trial.number, loaded.run, fingerprint))
        self._track(trial, loaded, fingerprint, folder)

    def _identity(self, number: int, run: Run, fingerprint: str) -> str:
        if not self._study.populated or self._phase.role == "confirm":
            return run.identity(fingerprint)
        sweep: str | None = self._folder.read(IDENTITY)
        # the settings of a member of a population change, and its weights come from others: its number identifies it
        return hashlib.sha256(f"{sweep} {number}".encode()).hexdigest()

    def _track(self, trial: Trial, loaded: Loaded, fingerprint: str, folder: RunFolder) -> None:
        """Follow the run of a trial in MLflow from now on."""
        about = publish.about(loaded, fingerprint, folder, write_config(loaded.run, folder), time.time())
        sweep = self._folder.path.name
        tags = {
            "raylway.sweep": sweep,
            "raylway.trial": str(trial.number),
            "raylway.role": self._phase.role,
            "mlflow.source.name": f"raylway sweep {loaded.run.recipe}",
            NOTE: f"trial {trial.number} of {sweep}: {name_of(trial.initial) or 'the recipe'}",
        }
        params = dict(about.params) | trial.initial
        about = replace(about, name=name_of(trial.initial) or "defaults", params=params, tags={**about.tags, **tags})
        begin(folder, about)
        self._sweep.add_trial(trial.number, Tracker(self._sweep.uri, folder, loaded.run.root, about, parent=self._sweep))

    # ---- the end of a trial

    def _fail(self, trial: Trial, code: int, cause: str) -> None:
        self._end(trial, "failed", {}, Failure(code, 0, time.time(), cause))

    def _end(self, trial: Trial, status: Status, outcome: Mapping[str, Any], failure: Failure | None = None) -> None:
        seconds = time.monotonic() - self._started.pop(trial.number, time.monotonic())
        outcome = dict(outcome) | ({"frame": failure.frame} if failure and failure.frame else {})
        cause, code = (failure.error, failure.code) if failure else ("", 0)
        self._ledger.end(trial.number, status, seconds=seconds, outcome=outcome, cause=cause, code=code)
        if self._phase.search:
            self._phase.search.end(trial.number, trial.value(self._study.metric), stopped=status == "stopped")
        self._close(trial)
        if lock := self._locks.pop(trial.number, None):
            lock.close()
        self._free_disk()
        self._check_for_bug(failure)
        trials = self.trials
        leader, count = self._study.best(trials), sum(each.ended for each in trials)
        self._say(sweep_report.ended(self._study, trial, leader, count=count, total=self.total))
        self._sweep.describe(self._page)
        if leader and self._phase.search:
            self._journal.write(count, {f"best/{self._study.metric}": leader.value(self._study.metric) or 0.0})

    def _page(self) -> str:
        """The leaderboard as it stands, for the sweep's page."""
        trials = list(self._ledger.trials.values())
        run_ids = {trial.number: trial.run_id or self._sweep.trial_run_id(trial.number) for trial in trials}
        return sweep_report.Report(self._study, self._study.searched(trials), self._sweep, {}).markdown(run_ids, linked=False)

    def _close(self, trial: Trial) -> None:
        """Record the end of a trial for MLflow."""
        stage = "stopped early" if trial.status == "stopped" else trial.status
        tags = {"stage": stage, "raylway.threads": str(self._threads)}
        if trial.cause:
            tags |= {"cause": trial.cause[:500], "exit_code": str(trial.code)}
        if trial.outcome.get("weights_sha256"):
            tags["weights_sha256"] = trial.outcome["weights_sha256"]
        value = trial.value(self._study.metric)
        result = f", {self._study.metric} **{value:.4f}**" if value is not None else f": {trial.cause}"
        tags[NOTE] = f"**{name_of(trial.params) or 'defaults'}**: {stage}{result}"
        self._sweep.end_trial(trial.number, "FAILED" if trial.status == "failed" else "FINISHED", tags)

    def _free_disk(self) -> None:
        """Delete the checkpoints of all but the best; a confirmation's are sorted out when the winner is known."""
        if self._phase.role == "confirm":
            return
        order = self._study.ranked([trial for trial in self.trials if trial.ended])
        for trial in order[self._study.run.sweep.keep :]:
            if trial.number not in self._freed:
                self._freed.add(trial.number)
                shutil.rmtree(folder_of(self._folder, trial.number).checkpoints, ignore_errors=True)

    def _check_for_bug(self, failure: Failure | None) -> None:
        """Stop the sweep where the first three trials all fail in the same way: the next would as well."""
        if len(self._failures) >= _ALIKE:
            return
        self._failures.append(f"{failure.error} {failure.frame}" if failure and failure.code in _BUGS else f"no bug {len(self._failures)}")
        if len(self._failures) == _ALIKE and len(set(self._failures)) == 1:
            self.bug, self.stopping = failure, True


def folder_of(sweep: RunFolder, number: int) -> RunFolder:
    """The run folder of a trial, made if it is not there."""
    folder = RunFolder(sweep.path / f"{number:04}")
    folder.path.mkdir(exist_ok=True)
    return folder


def run_here(start: Callable[[Task, None], Any], controller: Controller) -> None:
    """Run trials until the controller has no more, one after another, in this process, Ray never imported."""
    while (numbered := controller.next()) is not None:
        number, task = numbered
        reports = start(task, None)
        try:
            while not controller.reported(number, next(reports)):
                pass
            reports.close()
            final: Mapping[str, Any] = {"stopped": True}
        except StopIteration as end:
            final = end.value
        controller.ended(number, final)
