"""Conduct a sweep: say what each trial is, keep the facts, tell MLflow and the screen. Ray Tune asks and is answered here."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from cluster import ray_data
from cluster.ray_tune import Report
from pipelines import publish
from pipelines.config import Loaded
from pipelines.data import preparation as preparing
from pipelines.data.preparation import Plan
from pipelines.errors import CLUSTER, DATA, RECIPE, WORKLOAD, Failure, RecipeError
from pipelines.process import in_background
from pipelines.run_record import RunFolder, write_atomically, write_config
from pipelines.run_settings import Run
from pipelines.search import ranking
from pipelines.search.ledger import Ledger, Role, Status, Trial
from pipelines.search.space import Params, name_of
from pipelines.search.study import Design
from pipelines.search.trial import Task
from pipelines.tracking import outbox, shipper
from pipelines.tracking.journal import Journal
from pipelines.tracking.leaderboard import NOTE
from pipelines.tracking.trial_shipper import Fleet
from pipelines.training.job import Job
from workloads.base import DataError

_ALIKE = 3
_BUGS = (WORKLOAD, RECIPE, DATA)


def folder_of(sweep: RunFolder, number: int) -> RunFolder:
    """Where the trial of that number keeps its own."""
    return RunFolder(sweep.path / f"{number:04}")


class Source(Protocol):
    """Where the settings of trials come from (sweeping.search.Search, or a list)."""

    def suggest(self, number: int) -> Params | None: ...

    def report(self, number: int, look: int, value: float) -> bool: ...

    def end(self, number: int, value: float | None, *, stopped: bool) -> None: ...

    def preload(self) -> None:
        """Import what is asked of it when all trials have ended."""
        ...


class Conductor:
    """Answers Ray Tune (cluster.ray_tune.Conductor) for the trials of one role, `total` of them, those `waiting` first."""

    def __init__(
        self,
        design: Design,
        plan: Plan,
        folder: RunFolder,
        ledger: Ledger,
        fleet: Fleet,
        source: Source,
        *,
        role: Role,
        total: int,
        waiting: Sequence[Trial],
        begun: int,
        threads: int,
        gpus: float,
        say: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        self._design, self._plan, self._folder = design, plan, folder
        self._ledger, self._fleet, self._source, self._say, self._on_end = ledger, fleet, source, say, ended
        self._role, self.total, self._waiting, self._begun = role, total, list(waiting), begun
        self._threads, self._gpus = threads, gpus
        self._locks: dict[int, ExitStack] = {}
        self._started: dict[int, float] = {}
        self._failures: list[str] = []
        self._changes: Counter[int] = Counter()
        self._freed: set[int] = set()
        self._journal = Journal(folder.journal)
        self.checkpoint_every: int | None = None
        """Steps between two checkpoints where each look must have one: a population clones at looks."""
        self.stopping = False
        self.bug: Failure | None = None
        """What the first trials all failed of, which ends the sweep."""
        for trial in self.trials():
            if trial.ended and not trial.run_id:  # the process was killed before MLflow had all of it
                self._follow(trial)
                self._track(trial)

    # ---- asked by Ray Tune

    def next(self) -> tuple[int, Task] | None:
        while not self.stopping:
            trial = self._waiting.pop(0) if self._waiting else self._new()
            if trial is None:
                in_background(self._source.preload)  # the last are under way, and the others' cores are free
                return None
            try:
                return trial.number, self._task(trial)
            except (RecipeError, DataError) as error:
                self._follow(trial)
                code = RECIPE if isinstance(error, RecipeError) else DATA
                self._end(trial, "failed", {}, Failure(code, 0, time.time(), str(error), "", ""))
        return None

    def reported(self, number: int, report: Report) -> bool:
        trial, look = self._ledger.trials[number], report["look"]
        if look > max(trial.looks, default=0):  # one that resumed looks again at what it saw before
            self._ledger.look(number, look, report["scores"])
            return self._source.report(number, look, report["scores"][self._design.metric]) or self.stopping
        return self.stopping

    def ended(self, number: int, report: Report | None) -> None:
        trial = self._ledger.trials[number]
        if self.stopping and report and report.get("stopped"):
            return  # interrupted: it goes on from its checkpoint the next time
        if report is None:
            times = self._design.run.scale.retries + 1
            lost = f"its process died {times} times (scale.retries={times - 1})"
            self._end(trial, "failed", {}, Failure(CLUSTER, 0, time.time(), lost, "", ""))
        elif report.get("stopped"):
            self._end(trial, "stopped", {"metrics": self._last_scores(trial)})
        elif "failed" in report:
            self._end(trial, "failed", {}, Failure(**report["failed"]))
        else:
            self._end(trial, "finished", report)

    def changed(self, number: int, task: Task, donor: int) -> Task:
        """Population Based Training: the donor's settings, each a little changed, for a trial that takes over its weights."""
        self._changes[number] += 1
        random = Random(f"{self._design.run.sweep.seed} {number} {self._changes[number]}")
        params = {key: self._design.space[key].changed(value, random) for key, value in self._ledger.trials[donor].params.items()}
        self._ledger.change(number, params, donor)
        self._say(f"trial {number} goes on with the weights of trial {donor} and {name_of(params)}")
        folder = folder_of(self._folder, number)
        run = self._settings(params).run
        return replace(task, job=replace(task.job, run=run, folder=folder, identity=self._identity(number, run, task.job.fingerprint)))

    def population(self) -> list[tuple[int, Task]]:
        """All trials at once."""
        found = []
        while (given := self.next()) is not None:
            found.append(given)
        return found

    # ---- what a trial is

    def _new(self) -> Trial | None:
        if self._begun >= self.total:
            return None
        params = self._source.suggest(len(self._ledger.trials))
        if params is None:
            self._say(f"every point of the space was tried: {self._begun} trials, not {self.total}")
            self.total = self._begun
            return None
        self._begun += 1
        return self._ledger.begin(params, self._role)

    def _settings(self, params: Mapping[str, Any]) -> Loaded:
        loaded = self._design.trial(params)
        if self.checkpoint_every:
            often = loaded.run.train.model_copy(update={"checkpoint_every": self.checkpoint_every, "keep": max(4, loaded.run.train.keep)})
            loaded = replace(loaded, run=loaded.run.model_copy(update={"train": often}))
        return loaded

    def _task(self, trial: Trial) -> Task:
        loaded = self._settings(trial.params)
        run, plan = loaded.run, self._plan_of(loaded.run)
        folder = folder_of(self._folder, trial.number)
        folder.path.mkdir(exist_ok=True)
        lock = self._locks[trial.number] = ExitStack()
        lock.enter_context(folder.locked("driver", wait_seconds=5))
        identity = self._identity(trial.number, run, plan.fingerprint)
        write_atomically(folder.identity, identity)
        write_atomically(folder.fingerprint, plan.fingerprint)
        folder.abandoned.unlink(missing_ok=True)
        self._fleet.add(trial.number, self._tracker(trial, loaded, plan, folder))
        self._started[trial.number] = time.monotonic()
        job = Job(run, folder, plan.store, plan.fingerprint, identity, self._threads)
        sign = 1 if self._design.mode == "max" else -1
        return Task(job, self._design.metric, sign, "test" if self._role == "confirm" else "validation", self._gpus)

    def _identity(self, number: int, run: Run, fingerprint: str) -> str:
        if not self._design.populated or self._role == "confirm":
            return run.identity(fingerprint)
        # the settings of a member of a population change, and its weights come from others: it is what its place is
        return hashlib.sha256(f"{self._folder.identity.read_text()} {number}".encode()).hexdigest()

    def _plan_of(self, run: Run) -> Plan:
        """The data of a trial; others than the sweep's where a setting of the task is searched. Prepared here, once for all."""
        if run.model.task_settings() == self._design.run.model.task_settings():
            return self._plan
        plan = preparing.plan(run)
        preparing.prepare(run, plan, ray_data.each if self._design.run.scale.workers else preparing.in_process)
        return plan

    def _tracker(self, trial: Trial, loaded: Loaded, plan: Plan, folder: RunFolder) -> shipper.Tracker:
        about = publish.about(loaded, plan, folder, write_config(loaded.run, folder), time.time())
        sweep = self._folder.path.name
        tags = {"raylway.sweep": sweep, "raylway.trial": str(trial.number), "raylway.role": self._role}
        tags[NOTE] = f"trial {trial.number} of {sweep}: {name_of(trial.first) or 'the recipe'}"
        about = replace(
            about,
            name=name_of(trial.first) or "defaults",
            params=dict(about.params) | trial.first,
            tags={**about.tags, **tags, "mlflow.source.name": f"raylway sweep {loaded.run.recipe}"},
        )
        parent = self._fleet.parent
        outbox.keep_about(folder, about)
        return shipper.Tracker(parent.uri, folder, loaded.run.root, about, parent=parent)

    # ---- what came of it

    def _end(self, trial: Trial, status: Status, told: Mapping[str, Any], failure: Failure | None = None) -> None:
        seconds = time.monotonic() - self._started.pop(trial.number, time.monotonic())
        cause = failure.error if failure else ""
        told = dict(told) | ({"frame": failure.frame} if failure and failure.frame else {})
        self._ledger.end(trial.number, status, seconds=seconds, told=told, cause=cause, code=failure.code if failure else 0)
        if self._role == "search":
            self._source.end(trial.number, trial.value(self._design.metric), stopped=status == "stopped")
        self._track(trial)
        if lock := self._locks.pop(trial.number, None):
            lock.close()
        self._free_disk()
        self._look_for_a_bug(failure)
        mine = self.trials()
        leader = ranking.best(mine, self._design.metric, self._design.mode)
        ended = sum(each.ended for each in mine)
        self._say(ranking.event(trial, self._design.metric, leader, ended=ended, total=self.total))
        self._on_end()
        if leader and self._role == "search":
            self._journal.write(ended, {f"best/{self._design.metric}": leader.value(self._design.metric) or 0.0})

    def trials(self) -> list[Trial]:
        """Those of this role, in their order."""
        return [trial for trial in list(self._ledger.trials.values()) if trial.role == self._role]

    def _follow(self, trial: Trial) -> None:
        """Have MLflow follow a trial that is not run here, or whose settings cannot even be a run."""
        try:
            loaded = self._settings(trial.params)
            plan = self._plan_of(loaded.run)
        except (RecipeError, DataError):
            loaded, plan = self._design.loaded, self._plan
        folder = folder_of(self._folder, trial.number)
        folder.path.mkdir(exist_ok=True)
        if not folder.identity.exists():
            write_atomically(folder.identity, self._identity(trial.number, loaded.run, plan.fingerprint))
        self._fleet.add(trial.number, self._tracker(trial, loaded, plan, folder))

    def _track(self, trial: Trial) -> None:
        """Tell MLflow that a trial ended, and how."""
        stage = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}[trial.status]
        tags = {"stage": stage, "raylway.threads": str(self._threads)}
        if trial.cause:
            tags |= {"cause": trial.cause[:500], "exit_code": str(trial.code)}
        if trial.told.get("weights_sha256"):
            tags["weights_sha256"] = trial.told["weights_sha256"]
        value = trial.value(self._design.metric)
        worth = f", {self._design.metric} **{value:.4f}**" if value is not None else f": {trial.cause}"
        tags[NOTE] = f"**{name_of(trial.params) or 'defaults'}**: {stage}{worth}"
        self._fleet.end(trial.number, "FAILED" if trial.status == "failed" else "FINISHED", tags)

    def _last_scores(self, trial: Trial) -> dict[str, float]:
        return dict(trial.looks[max(trial.looks)]) if trial.looks else {}

    def _free_disk(self) -> None:
        """Only the best keep their checkpoints; a confirmation's are sorted out when the winner is known."""
        if self._role == "confirm":
            return
        order = ranking.ranked([trial for trial in self.trials() if trial.ended], self._design.metric, self._design.mode)
        for trial in order[self._design.run.sweep.keep :]:
            if trial.number not in self._freed:
                self._freed.add(trial.number)
                shutil.rmtree(folder_of(self._folder, trial.number).checkpoints, ignore_errors=True)

    def _look_for_a_bug(self, failure: Failure | None) -> None:
        """Where the first three trials all fail in the same way, the next would as well."""
        if len(self._failures) >= _ALIKE:
            return
        self._failures.append(f"{failure.error} {failure.frame}" if failure and failure.code in _BUGS else f"no bug {len(self._failures)}")
        if len(self._failures) == _ALIKE and len(set(self._failures)) == 1:
            self.bug, self.stopping = failure, True
