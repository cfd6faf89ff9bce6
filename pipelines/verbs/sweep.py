"""Sweep: search the settings of a recipe by trials, several at once, and confirm the best on rows and with seeds it has not seen.

All that is known of a sweep is its ledger. The same command continues a sweep that was stopped, `more` extends it, and a changed space
takes over the trials that lie in it.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import metrics, ray_data, ray_train
from cluster import session as cluster_session
from cluster.capacity import TrialSlots
from cluster.nodes import until_free
from cluster.session import Session
from cluster.shared_storage import SharedStorage
from pipelines import metrics_export, publish
from pipelines.data import dataset as prepared
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.elastic import Pause, with_restarts
from pipelines.errors import CLUSTER, Failure, StorageError, TrackingError, WorkerFailed, code_of, mark_resumable
from pipelines.process import in_background
from pipelines.run_record import begin, check_writable, claim, slug, write_config
from pipelines.run_settings import Run
from pipelines.run_states import IDENTITY, RESULT, UNPROMOTED
from pipelines.screen import Screen
from pipelines.search.controller import Controller, Phase, folder_of, run_here
from pipelines.search.ledger import Ledger, Trial
from pipelines.search.space import key_of
from pipelines.search.study import Study, study_of
from pipelines.search.sweep_report import Confirmed, Report, confirmed, live
from pipelines.search.trial import train_here, train_on_workers
from pipelines.tracking import client
from pipelines.tracking.client import NOTE
from pipelines.tracking.sweep_tracker import SweepTracker
from pipelines.training import checkpoint
from pipelines.training.job import Task

if TYPE_CHECKING:
    from pipelines.search.suggest import Search
    from pipelines.tracking.registry import Registered

_LAST_WORD_SECONDS = 10.0
_SMALL_ROWS = 50_000


def sweep(recipe: str, overrides: Sequence[str], *, more: int | None = None, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Search, and return the result (DESIGN §7). `more`: so many trials on top of those there are.

    Raises the errors of pipelines.errors. A trial that fails is no error, unless the first three fail in the same way.
    """
    study = study_of(recipe, overrides)
    run = study.run
    check_writable(run.root)
    uri = client.tracking_uri(run.root, run.track.uri)
    client.check(uri)
    if not cluster_session.address():
        study.slots(cluster_session.local_resources())
    data = preparing.plan(run)
    # named by what is not searched, so that a longer search, and one of another space, is the same sweep
    identity = run.identity(data.fingerprint)
    folder = claim(run.root / run.experiment, run.name or f"sweep-{run.recipe}-{slug(data.source.label)}-{identity[:8]}", identity)
    with folder.locked("driver", wait_seconds=5):
        about = publish.about(study.loaded, data.fingerprint, folder, write_config(run, folder), began or time.time())
        space = {f"sweep.space.{key}": text for key, text in run.sweep.space.items()}  # no params: those may not change, a space may
        tags = {"raylway.sweep": folder.path.name, "mlflow.source.name": f"raylway sweep {recipe}", NOTE: f"sweep of {recipe}"} | space
        about = replace(about, tags={**about.tags, **tags}, command=("raylway", "sweep", recipe, *overrides))
        begin(folder, about)
        ledger = Ledger(folder.ledger)
        return _Sweep(study, data, ledger, SweepTracker(uri, folder, run.root, about, ledger.tracked), screen).run(more)


def planned(study: Study, screen: Screen) -> dict[str, Any]:
    """The search that would run, with the arithmetic of how many trials fit at once, as JSON; nothing is started."""
    size, total = study.space.size(), study.total(more=None, known=0, target=0)
    slots = None if cluster_session.address() else study.slots(cluster_session.local_resources())
    arithmetic = slots.arithmetic if slots else "known when the cluster is reached"
    points = "more points than can be counted" if size is None else f"{size:,} points"
    screen.say(f"space      {points}; {total} trials by {study.method}, scheduler {study.run.sweep.scheduler}")
    screen.say(f"room       {arithmetic}")
    search = {"space": study.run.sweep.space, "points": size, "trials": total, "search": study.method, "room": arithmetic}
    return search | {"at_once": slots.at_once if slots else None}


class _Sweep:
    """One call of the command: its stages, and what they share."""

    def __init__(self, study: Study, plan: preparing.Plan, ledger: Ledger, tracker: SweepTracker, screen: Screen) -> None:
        self._study, self._plan, self._ledger, self._tracker, self._screen = study, plan, ledger, tracker, screen
        self._folder = tracker.folder
        self._controller: Controller | None = None
        self._startup_seconds: float | None = None

    def run(self, more: int | None) -> dict[str, Any]:
        """Search, confirm, and finish: register the winner, close the runs, report."""
        known = self._searched
        self._reopen_lost(known)
        total = self._study.total(more=more, known=len(known), target=self._ledger.target)
        if total != self._ledger.target:
            self._ledger.aim(total)
        waiting = sum(not trial.ended for trial in known)
        going_on = f", {waiting} of them go on" if waiting else ""
        self._screen.say(f"{self._folder.path.name}: {len(known)} of {total} trials are known{going_on}; log: {self._folder.log}")
        try:
            with ExitStack() as stack:
                stack.enter_context(self._screen.captured(self._folder.log))
                session = self._connected(stack) if waiting or len(known) < total or self._study.run.sweep.confirm else None
                self._tracker.start(self._screen.say)
                if session:
                    from cluster import ray_tune  # noqa: F401, imported while the cluster starts
                search = self._search(known)
                dataset = self._prepared(session)
                apart = None  # steps between two validations
                if self._study.populated and session:
                    run = self._study.run
                    apart = run.train.eval_every or run.steps_per_epoch(preparing.examples(run, dataset)["train"])
                self._run_trials(session, Phase("search", known, total, search.suggest, search, apart))
                winner = self._confirm(session)
                return self._finish(search, dataset, winner)
        except KeyboardInterrupt:
            self._abandon("KILLED", {"stage": "interrupted"})
            raise
        except TrackingError as error:  # all was searched; only MLflow has not all of it yet
            mark_resumable(error)
            raise
        except Exception as error:
            if self._ledger.trials:
                mark_resumable(error)
            self._abandon("FAILED", {"stage": "failed", "cause": str(error)[:500], "exit_code": str(code_of(error))})
            raise

    @property
    def _searched(self) -> list[Trial]:
        return self._study.searched(list(self._ledger.trials.values()))

    def _reopen_lost(self, trials: Sequence[Trial]) -> None:
        """Start trials again whose process or cluster was lost: that says nothing about their settings."""
        for trial in trials:
            if trial.status == "failed" and trial.code == CLUSTER:
                self._ledger.reopen(trial.number)

    def _connected(self, stack: ExitStack) -> Session | None:
        """Ray, with the metrics of the sweep exported, until the stack closes; None with scale.workers=0."""
        run = self._study.run
        if not run.scale.workers:
            return None
        session = stack.enter_context(cluster_session.connect())
        counted = metrics_export.of_sweep(self._folder, lambda: [trial.status for trial in list(self._ledger.trials.values())])
        stack.enter_context(metrics.exported(session, counted, tags=metrics_export.tags(run, self._folder)))
        return session

    def _search(self, known: Sequence[Trial]) -> Search:
        from pipelines.search.suggest import Search

        study, settings = self._study, self._study.run.sweep
        search = Search(
            study.space, mode=study.mode, method=study.method, scheduler=settings.scheduler, grace=settings.grace, seed=settings.seed
        )
        search.replay(((trial, study.point(trial) or {}) for trial in known), study.metric)
        return search

    def _prepared(self, session: Session | None) -> Dataset:
        """Prepare the data once, before the first trial; few rows in this process, while Ray starts."""
        if session and not session.local:
            session.ready()
            SharedStorage(self._study.run.root, self._screen.say).check()
        here = self._plan.ready or session is None or self._plan.source.rows() <= _SMALL_ROWS
        if session and not here:
            self._wait_for_room(session, self._study.slots(session.resources()))
        dataset = preparing.prepare(self._study.run, self._plan, preparing.in_process if here else ray_data.each)
        preparing.tell(dataset, self._screen.say)
        return dataset

    def _fingerprint(self, run: Run) -> str:
        """The data of a trial: the sweep's, or where a setting of the task is searched its own, prepared here."""
        if run.model.task_settings() == self._study.run.model.task_settings():
            return self._plan.fingerprint
        plan = preparing.plan(run)
        preparing.prepare(run, plan, ray_data.each if self._study.run.scale.workers else preparing.in_process)
        return plan.fingerprint

    def _wait_for_room(self, session: Session, slots: TrialSlots) -> None:
        """Wait until a trial fits onto a cluster that others use too: Ray itself would wait without a word."""
        if not session.local:
            until_free(slots.workers, cpus=slots.cpus, gpus=slots.gpus, say=self._screen.say)

    def _run_trials(self, session: Session | None, phase: Phase) -> None:
        """Run the trials of a phase to the last. Raises WorkerFailed where the first three failed of one bug."""
        slots = self._study.slots(session.resources() if session else cluster_session.local_resources())
        self._startup_seconds = self._startup_seconds or time.time() - self._tracker.about.began
        controller = self._controller = Controller(self._study, self._ledger, self._tracker, phase, slots, self._fingerprint)
        if len(phase.known) == phase.total and all(trial.ended for trial in phase.known):
            return
        self._screen.say(f"room     {slots.arithmetic}")
        if session is None:
            run_here(train_here, controller)
        else:
            self._wait_for_room(session, slots)
            self._run_on_ray(controller, slots, phase)
        if controller.bug:
            raise WorkerFailed(controller.bug)

    def _run_on_ray(self, controller: Controller, slots: TrialSlots, phase: Phase) -> None:
        from cluster import ray_tune

        run = self._study.run
        population = list(iter(controller.next, None)) if phase.checkpoint_every else ()
        launch = functools.partial(_launch, slots, run.scale.retries)
        start = train_here if slots.workers == 1 else functools.partial(train_on_workers, launch)
        tune = functools.partial(ray_tune.run, start, controller, slots, retries=run.scale.retries, scratch=self._folder.scratch)
        running = in_background(functools.partial(tune, population=population, every=run.sweep.grace))

        def board() -> Any:
            return live(
                self._study, controller.trials, slots, total=controller.total, importance=phase.search.importance() if phase.search else {}
            )

        with self._screen.live(board):
            running.result()

    def _confirm(self, session: Session | None) -> Confirmed | None:
        """Train the best trials and the recipe's settings anew with other seeds, if that was asked for.

        Raises WorkerFailed with the causes, and the exit code of the first, where no trial was trained to its end.
        """
        if self._study.best(self._searched) is None:
            failed = [trial for trial in self._searched if trial.status == "failed"]
            causes = "; ".join(dict.fromkeys(trial.cause for trial in failed)) or "all were ended early"
            code = failed[0].code if failed else CLUSTER
            raise WorkerFailed(Failure(code, 0, time.time(), f"no trial was trained to its end: {causes}"))
        if not self._study.run.sweep.confirm:
            return None
        entrants, seeds = self._study.entrants(self._searched)
        trials = [trial for trial in self._ledger.trials.values() if trial.role == "confirm"]
        self._reopen_lost(trials)
        tried = {key_of(trial.params): trial for trial in trials}
        wanted = [entrant.with_seed(seed) for seed in seeds for entrant in entrants]
        known = [tried[key_of(params)] for params in wanted if key_of(params) in tried]
        untried = iter([params for params in wanted if key_of(params) not in tried])
        names = ", ".join(entrant.name for entrant in entrants)
        self._screen.say(f"confirming {names} with seeds {', '.join(map(str, seeds))}")
        self._run_trials(session, Phase("confirm", known, len(wanted), lambda number: next(untried, None)))
        return confirmed(self._study, self._ledger, entrants, seeds)

    def _finish(self, search: Search, dataset: Dataset, confirmed: Confirmed | None) -> dict[str, Any]:
        """Send the rest to MLflow, register the confirmed winner, and report."""
        report = Report(self._study, self._searched, self._tracker, search.importance(), confirmed)
        patience = self._study.run.track.wait_seconds
        if not confirmed:  # nothing is to be registered, so the rest can be sent from the folder: `raylway track --sync`
            self._tracker.end("FINISHED", {"stage": "finished", NOTE: report.markdown(self._run_ids, linked=False)})
        self._tracker.flush(patience_seconds=patience)  # before the ids of the runs are read
        model = self._tracker.insist(lambda: self._register(dataset, confirmed), patience_seconds=patience) if confirmed else None
        if model:
            self._folder.write(UNPROMOTED, vars(model))
        note = report.markdown(self._run_ids)
        self._tracker.close("FINISHED", {"stage": "finished", NOTE: note}, patience_seconds=patience)
        seconds = {"startup_seconds": self._startup_seconds, "seconds": time.time() - self._tracker.about.began}
        result = report.as_json(model) | seconds
        self._folder.write(RESULT, result)
        report.show(self._screen, self._study.run.root, model)
        return result

    @property
    def _run_ids(self) -> dict[int, str]:
        return {trial.number: trial.run_id for trial in self._ledger.trials.values()}

    def _register(self, dataset: Dataset, confirmed: Confirmed) -> Registered | None:
        """Register the winner's run of the median seed, and free what the others kept."""
        trial = confirmed.median
        for other in (each for scores in confirmed.scores for each in scores.trials if each is not trial):
            shutil.rmtree(folder_of(self._folder, other.number).checkpoints, ignore_errors=True)
        run = self._study.with_params(trial.params).run
        if not run.model_name:
            return None
        if (fingerprint := self._fingerprint(run)) != self._plan.fingerprint:
            dataset = prepared.proven(self._plan.store, fingerprint)
        folder = folder_of(self._folder, trial.number)
        path, _ = checkpoint.newest(folder.checkpoints, folder.read(IDENTITY) or "")
        assert path, folder
        tags = {"weights_sha256": trial.outcome["weights_sha256"], "raylway.sweep": self._folder.path.name}
        return publish.register(run, self._tracker.uri, trial.run_id, dataset, Path(path), tags)

    def _abandon(self, status: str, tags: Mapping[str, str]) -> None:
        if self._controller:
            self._controller.stopping = True
        try:
            self._tracker.abandon(status, tags, patience_seconds=_LAST_WORD_SECONDS)
        except StorageError as error:  # the error that ended the sweep is the one to report; this one only adds to it
            self._screen.say(str(error))


def _launch(slots: TrialSlots, retries: int, worker: Any, task: Task, say: Any) -> Any:
    """Launch the workers of one trial, and again where one is lost."""
    folder = task.job.folder
    where: Any = {"workers": slots.workers, "cpus": slots.cpus, "gpus": slots.gpus, "scratch": folder.scratch}
    launch = functools.partial(ray_train.launch, worker, task, **where)
    return with_restarts(launch, folder, pause=Pause(folder.pause), retries=retries, say=say)
