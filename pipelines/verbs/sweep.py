"""Sweep: search the settings of a recipe by trials, several at once, and say honestly what was found.

What is known of a sweep is its ledger. The same command goes on where it was stopped, `more` extends it, and a changed space takes over
the trials that lie in it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster import metrics, ray_data, ray_train, ray_tune
from cluster import session as cluster_session
from cluster.capacity import TrialSlots
from cluster.session import Session
from cluster.shared_storage import Canary
from cluster.waiting import until_free
from pipelines import metrics_export, publish
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.errors import CLUSTER, Failure, StorageError, TrackingError, WorkerFailed, code_of, mark_resumable
from pipelines.pausing import Pause
from pipelines.process import in_background
from pipelines.run_record import check_writable, claim, keep_unpromoted, slug, write_atomically, write_config
from pipelines.screen import Screen
from pipelines.search import confirm, ranking
from pipelines.search.confirm import Confirmed
from pipelines.search.controller import Conductor
from pipelines.search.ledger import Ledger, Trial
from pipelines.search.study import Design, design
from pipelines.search.sweep_report import Findings, live
from pipelines.search.trial import Task, alone, together
from pipelines.supervision import supervised
from pipelines.tracking import outbox, shipper
from pipelines.tracking.leaderboard import NOTE
from pipelines.tracking.trial_shipper import Fleet
from pipelines.verbs import plan

if TYPE_CHECKING:
    from pipelines.search.suggest import Search

_LAST_WORD_SECONDS = 10.0
_SMALL_ROWS = 50_000


def sweep(recipe: str, overrides: Sequence[str], *, more: int | None = None, screen: Screen, began: float | None = None) -> dict[str, Any]:
    """Search, and give back the result (DESIGN §7). `more`: so many trials on top of those there are.

    Raises the errors of pipelines.errors. A trial that fails is no error, unless the first three fail in the same way.
    """
    made = design(recipe, overrides)
    run = made.run
    check_writable(run.root)
    uri = shipper.tracking_uri(run.root, run.track.uri)
    shipper.check(uri)
    if not cluster_session.address():
        made.room(cluster_session.local_resources())
    data = preparing.plan(run)
    # named by what is not searched, so that a longer search, and one of another space, is the same sweep
    identity = run.identity(data.fingerprint)
    folder = claim(run, run.name or f"sweep-{run.recipe}-{slug(data.source.label)}-{identity[:8]}", identity)
    with folder.locked("driver", wait_seconds=5):
        config = write_config(run, folder)
        about = publish.about(made.loaded, data, folder, config, began or time.time())
        space = {f"sweep.space.{key}": text for key, text in run.sweep.space.items()}  # no params: those may not change, a space may
        tags = {"raylway.sweep": folder.path.name, "mlflow.source.name": f"raylway sweep {recipe}", NOTE: f"sweep of {recipe}"} | space
        command = ("raylway", "sweep", recipe, *overrides)
        about = replace(about, tags={**about.tags, **tags}, command=command)
        outbox.keep_about(folder, about)
        return _Sweep(made, data, shipper.Tracker(uri, folder, run.root, about), screen, about.began).run(more)


def planned(recipe: str, overrides: Sequence[str], screen: Screen) -> dict[str, Any]:
    """What would be searched, and the arithmetic of how many trials fit at once, as JSON; nothing is started."""
    made = design(recipe, overrides)
    result = plan.plan(made.loaded, screen)
    size, total = made.space.size(), made.total(more=None, known=0, target=0)
    there = None if cluster_session.address() else made.room(cluster_session.local_resources())
    arithmetic = there.arithmetic if there else "known when the cluster is reached"
    points = "more points than can be counted" if size is None else f"{size:,} points"
    screen.say(f"space      {points}; {total} trials by {made.method}, scheduler {made.run.sweep.scheduler}")
    screen.say(f"room       {arithmetic}")
    told = {"space": made.run.sweep.space, "points": size, "trials": total, "search": made.method, "room": arithmetic}
    return result | {"sweep": told | {"at_once": there.at_once if there else None}}


class _Sweep:
    """One call of the command: the stages it goes through, and what they share."""

    def __init__(self, design: Design, data: preparing.Plan, tracker: shipper.Tracker, screen: Screen, began: float) -> None:
        self._design, self._data, self._tracker, self._screen, self._began = design, data, tracker, screen, began
        self._folder = tracker.folder
        self._ledger = Ledger(self._folder.path / "ledger.jsonl")
        self._fleet = Fleet(tracker, self._ledger.tracked)
        self._conductor: Conductor | None = None
        self._startup_seconds: float | None = None

    def run(self, more: int | None) -> dict[str, Any]:
        known, screen = self._searched(), self._screen
        for trial in known:
            self._reopen(trial)
        waiting = [trial for trial in known if not trial.ended]
        total = self._design.total(more=more, known=len(known), target=self._ledger.target)
        if total != self._ledger.target:
            self._ledger.aim(total)
        going_on = f", {len(waiting)} of them go on" if waiting else ""
        screen.say(f"{self._folder.path.name}: {len(known)} of {total} trials are known{going_on}; log: {self._folder.log}")
        try:
            with ExitStack() as stack:
                stack.enter_context(screen.captured(self._folder.log))
                todo = bool(waiting) or len(known) < total
                ray = (todo or self._design.run.sweep.confirm) and self._design.run.scale.workers
                session = stack.enter_context(cluster_session.connect()) if ray else None
                if session:
                    counted = metrics_export.of_sweep(self._folder, lambda: [trial.status for trial in list(self._ledger.trials.values())])
                    stack.enter_context(metrics.exported(session, counted, tags=metrics_export.tags(self._design.run, self._folder)))
                self._fleet.start(self._screen.say)
                if session:
                    ray_tune.preload()
                search = self._search(known)
                dataset = self._prepared(session)
                self._conducted(session, dataset, search, "search", total=total, waiting=waiting, begun=len(known))
                confirmed = self._confirmed(session, dataset)
                return self._concluded(search, dataset, confirmed)
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

    def _searched(self) -> list[Trial]:
        """Trials of the search that lie in the space, in their order."""
        return [trial for trial in list(self._ledger.trials.values()) if self._design.point(trial) is not None]

    def _reopen(self, trial: Trial) -> None:
        """What was lost with its process or its cluster is no fact about the settings."""
        if trial.status == "failed" and trial.code == CLUSTER:
            self._ledger.reopen(trial.number)

    def _search(self, known: Sequence[Trial]) -> Search:
        from pipelines.search.suggest import Search

        settings = self._design.run.sweep
        search = Search(
            self._design.space,
            mode=self._design.mode,
            method=self._design.method,
            scheduler=settings.scheduler,
            grace=settings.grace,
            seed=settings.seed,
        )
        search.know(((trial, self._design.point(trial) or {}) for trial in known), self._design.metric)
        return search

    def _wait_for_room(self, session: Session, room: TrialSlots) -> None:
        """Until a trial fits onto a cluster of others: Ray itself would wait without a word."""
        if not session.local:
            until_free(room.workers, cpus=room.cpus, gpus=room.gpus, say=self._screen.say)

    def _prepared(self, session: Session | None) -> Dataset:
        """The data, once, before the first trial; small ones by this process, while Ray starts."""
        if session and not session.local:
            session.ready()
            Canary(self._design.run.root, self._screen.say).check()
        here = self._data.ready or session is None or self._data.source.rows() <= _SMALL_ROWS
        if session and not here:
            self._wait_for_room(session, self._design.room(session.resources()))
        dataset = preparing.prepare(self._design.run, self._data, preparing.in_process if here else ray_data.each)
        preparing.tell(dataset, self._screen.say)
        return dataset

    def _conducted(self, session: Session | None, dataset: Dataset, source: Any, role: Any, **what: Any) -> None:
        """Run the trials of one role to the last. Raises WorkerFailed where the first three failed of one bug."""
        run = self._design.run
        room = self._design.room(session.resources() if session else cluster_session.local_resources())
        self._startup_seconds = self._startup_seconds or time.time() - self._began
        conductor = self._conductor = Conductor(
            self._design,
            self._data,
            self._folder,
            self._ledger,
            self._fleet,
            source,
            role=role,
            threads=run.scale.threads or room.cpus,
            gpus=room.gpus,
            say=self._screen.say,
            ended=lambda: self._fleet.describe(self._description),
            **what,
        )
        if what["begun"] == what["total"] and not what["waiting"]:
            return
        self._screen.say(f"room     {room.arithmetic}")
        if session is None:
            ray_tune.run_here(alone, conductor)
        else:
            self._wait_for_room(session, room)
            self._on_ray(conductor, room, self._looks_apart(dataset) if role == "search" and self._design.populated else None, source)
        if conductor.bug:
            raise WorkerFailed(conductor.bug)

    def _on_ray(self, conductor: Conductor, room: TrialSlots, looks_apart: int | None, source: Any) -> None:
        run = self._design.run
        conductor.checkpoint_every = looks_apart
        population = conductor.population() if looks_apart else ()
        start = alone if room.workers == 1 else functools.partial(together, functools.partial(_launch, room, run.scale.retries))
        go = functools.partial(ray_tune.run, start, conductor, room, retries=run.scale.retries, scratch=self._folder.path / ".ray")
        going = in_background(functools.partial(go, population=population, every=run.sweep.grace))

        def render() -> Any:
            importance = source.importance() if hasattr(source, "importance") else {}
            return live(self._design, conductor.trials(), room, total=conductor.total, importance=importance)

        with self._screen.live(render):
            going.result()

    def _looks_apart(self, dataset: Dataset) -> int:
        """Steps between two looks, where each must have a checkpoint to be cloned from."""
        run = self._design.run
        return run.train.eval_every or run.steps_per_epoch(preparing.examples(run, dataset)["train"])

    def _confirmed(self, session: Session | None, dataset: Dataset) -> Confirmed | None:
        if ranking.best(self._searched(), self._design.metric, self._design.mode) is None:
            raise self._nothing_found()
        if not self._design.run.sweep.confirm:
            return None
        entrants, seeds = confirm.entrants(self._design, self._searched())
        there = [trial for trial in self._ledger.trials.values() if trial.role == "confirm"]
        for trial in there:
            self._reopen(trial)
        listed = confirm.Listed(entrants, seeds, there)
        names = ", ".join(entrant.name for entrant in entrants)
        self._screen.say(f"confirming {names} with seeds {', '.join(map(str, seeds))}")
        self._conducted(session, dataset, listed, "confirm", total=listed.total, waiting=listed.waiting, begun=len(listed.known))
        return confirm.confirmed(self._design, self._ledger, entrants, seeds)

    def _nothing_found(self) -> WorkerFailed:
        """What to tell where no trial was trained to its end: the causes, and the exit code of the first."""
        failed = [trial for trial in self._searched() if trial.status == "failed"]
        causes = "; ".join(dict.fromkeys(trial.cause for trial in failed))
        code = failed[0].code if failed else CLUSTER
        return WorkerFailed(Failure(code, 0, time.time(), f"no trial was trained to its end: {causes or 'all were ended early'}", "", ""))

    def _description(self) -> str:
        """The leaderboard as it stands, for the sweep's page."""
        findings = Findings(self._design, self._searched(), {}, None, self._tracker)
        run_ids = {trial.number: trial.run_id or self._fleet.run_id(trial.number) for trial in list(self._ledger.trials.values())}
        return findings.markdown(run_ids, linked=False)

    def _concluded(self, search: Search, dataset: Dataset, confirmed: Confirmed | None) -> dict[str, Any]:
        findings = Findings(self._design, self._searched(), search.importance(), confirmed, self._tracker)
        patience = self._design.run.track.wait_seconds
        if not confirmed:  # nothing is to be registered, so whoever has the folder can tell MLflow the rest: `raylway track --sync`
            known = {trial.number: trial.run_id for trial in self._ledger.trials.values()}
            self._tracker.end("FINISHED", {"stage": "finished", NOTE: findings.markdown(known, linked=False)})
        self._fleet.finish(patience_seconds=patience)  # before the ids of the runs are told
        insist = functools.partial(self._tracker.insist, patience_seconds=patience)
        insist(
            functools.partial(
                self._tracker.describe, findings.markdown({trial.number: trial.run_id for trial in self._ledger.trials.values()})
            )
        )
        register = functools.partial(confirm.register, self._design, self._data, self._folder, self._tracker.uri, dataset)
        model = insist(lambda: register(confirmed)) if confirmed else None
        if model:
            keep_unpromoted(self._folder, model)
        self._tracker.close("FINISHED", {"stage": "finished"}, patience_seconds=patience)
        result = findings.as_json(model) | {"startup_seconds": self._startup_seconds, "seconds": time.time() - self._began}
        write_atomically(self._folder.result, json.dumps(result, indent=1))
        findings.show(self._screen, self._design.run.root, model)
        return result

    def _abandon(self, status: str, tags: Mapping[str, str]) -> None:
        if self._conductor:
            self._conductor.stopping = True
        try:
            self._fleet.abandon(status, tags, patience_seconds=_LAST_WORD_SECONDS)
        except StorageError as error:  # the error that ended the sweep is the one to tell; this one only adds to it
            self._screen.say(str(error))


def _launch(room: TrialSlots, retries: int, member: Any, task: Task, say: Any) -> Any:
    """Workers for one trial, launched again where one is lost."""
    folder = task.job.folder
    scratch = folder.path / ".ray"
    return supervised(
        lambda: ray_train.launch(member, task, workers=room.workers, cpus=room.cpus, gpus=room.gpus, scratch=scratch),
        folder,
        pause=Pause(folder.pause),
        retries=retries,
        say=say,
    )
