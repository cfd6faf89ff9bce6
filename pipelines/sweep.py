"""Sweep: search the settings of a recipe by trials, several at once, and say honestly what was found.

What is known of a sweep is its ledger. The same command goes on where it was stopped, `--trials +N` extends it, and a changed space takes
over the trials that lie in it.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType

from cluster import session as cluster_session
from cluster import shards, trials, workers
from cluster.session import Session
from cluster.trials import Room
from pipelines import config, confirm, plan, train
from pipelines import prepare as preparing
from pipelines.conductor import Conductor, Design
from pipelines.config import Loaded
from pipelines.data.prepared import Dataset
from pipelines.errors import CLUSTER, RecipeError, StorageError, WorkerFailed, code_of
from pipelines.folder import RunFolder, check_writable, write_atomically
from pipelines.screen import Screen, table
from pipelines.settings import Run
from pipelines.supervision import supervised
from pipelines.sweeping import board, space
from pipelines.sweeping.ledger import Ledger, Trial
from pipelines.sweeping.space import Params, Space
from pipelines.threads import in_background
from pipelines.tracking import mlflow
from pipelines.tracking.fleet import Fleet
from pipelines.trial import Task, alone, together

_TRIALS = 16
_LAST_WORD_SECONDS = 3.0
_SMALL_ROWS = 50_000


def sweep(
    recipe: str, overrides: Sequence[str], *, more: int | None = None, dry_run: bool = False, screen: Screen, began: float | None = None
) -> dict[str, Any]:
    """Search, and give back the result (DESIGN §7). `more`: so many trials on top of those there are.

    Raises the errors of pipelines.errors. A trial that fails is no error, unless the first three fail in the same way.
    """
    began = began or time.time()
    loaded = config.load(recipe, overrides)
    found = _space(recipe, overrides, loaded)
    metric, mode = _ranking(loaded.run)
    check_writable(loaded.run.root)
    uri = mlflow.tracking_uri(loaded.run.root, loaded.run.track.uri)
    mlflow.check(uri)
    room = None if cluster_session.address() else _room(loaded.run, cluster_session.local_resources())
    if dry_run:
        return _planned(loaded, found, room, screen)
    data = preparing.plan(loaded.run)
    folder = _folder(loaded.run, data)
    design = Design(recipe, tuple(overrides), loaded, found, metric, mode, data, folder)
    with folder.locked("driver", wait_seconds=5):
        return _Sweep(design, uri, screen, began).run(more)


class _Sweep:
    """One call of the command: what it goes through, with what it holds open."""

    def __init__(self, design: Design, uri: str, screen: Screen, began: float) -> None:
        self._design, self._screen, self._began = design, screen, began
        self._ledger = Ledger(design.folder.path / "ledger.jsonl")
        config_text = train.write_config(design.run, design.folder)
        about = train.about(design.loaded, design.plan, design.folder, config_text, began)
        about = replace(
            about,
            params={**about.params, **{f"sweep.space.{key}": text for key, text in design.run.sweep.space.items()}},
            tags={**about.tags, "raylway.sweep": design.folder.path.name, "mlflow.source.name": f"raylway sweep {design.recipe}"},
        )
        self._tracker = mlflow.Tracker(uri, design.folder, design.run.root, about)
        self._fleet = Fleet(self._tracker, self._ledger.tracked)
        self._conductor: Conductor | None = None

    def run(self, more: int | None) -> dict[str, Any]:
        known, waiting, total = self._known(more)
        screen, folder = self._screen, self._design.folder
        screen.say(f"{folder.path.name}: {len(known)} of {total} trials are known{_going_on(waiting)}; log: {folder.log}")
        search = self._search(known)
        session = None
        try:
            with ExitStack() as stack:
                stack.enter_context(screen.captured(folder.log))
                todo = bool(waiting) or len(known) < total
                if (todo or self._design.run.sweep.confirm) and self._design.run.scale.workers:
                    session = stack.enter_context(cluster_session.connect())
                dataset = self._prepared(session)
                self._fleet.start()
                if todo:
                    room = self._room_there(session)
                    self._conductor = self._conducting(search, room, total=total, waiting=waiting, begun=len(known))
                    self._conduct(session, room, self._population_step(dataset), search)
                self._after_search()
                confirmed = self._confirmed(session, dataset)
                return self._concluded(search, dataset, confirmed, total)
        except KeyboardInterrupt:
            self._abandon("KILLED", {"stage": "interrupted"})
            raise
        except Exception as error:
            self._abandon("FAILED", {"stage": "failed", "cause": str(error)[:500], "exit_code": str(code_of(error))})
            raise

    # ---- what is known, and what is left to do

    def _known(self, more: int | None) -> tuple[list[tuple[Trial, Params]], list[Trial], int]:
        """Trials that lie in the space, with their points; those to go on with; how many there are to be in all."""
        base = {key: row["value"] for key, row in self._design.loaded.settings().items()}
        population = self._design.run.sweep.scheduler == "pbt"
        known = []
        for trial in self._ledger.trials.values():
            point = self._design.space.fitted(trial.first if population else trial.params, base) if trial.role == "search" else None
            if point is not None:
                known.append((trial, point))
        for trial, _ in known:
            if trial.status == "failed" and trial.code == CLUSTER:
                self._ledger.reopen(trial.number)
        waiting = [trial for trial, _ in known if not trial.ended]
        total = self._target(more, len(known))
        return known, waiting, total

    def _target(self, more: int | None, known: int) -> int:
        settings, size = self._design.run.sweep, self._design.space.size()
        if more is not None:
            unmet = self._ledger.target if self._ledger.target > known else 0  # the same command was stopped before
            total = unmet or known + more
        elif settings.trials:
            total = settings.trials
        else:
            total = size if size is not None and _method(self._design.run, self._design.space) == "grid" else _TRIALS
        total = min(total, size) if size is not None else total
        if total != self._ledger.target:
            self._ledger.aim(total)
        return total

    def _search(self, known: Sequence[tuple[Trial, Params]]) -> Any:
        from pipelines.sweeping.search import Search

        settings = self._design.run.sweep
        search = Search(
            self._design.space,
            mode=self._design.mode,
            method=_method(self._design.run, self._design.space),
            scheduler=settings.scheduler,
            grace=settings.grace,
            seed=settings.seed,
        )
        search.know(known, self._design.metric)
        return search

    # ---- doing it

    def _prepared(self, session: Session | None) -> Dataset:
        """The data, once, before the first trial; small ones by this process, while Ray starts."""
        run, data = self._design.run, self._design.plan
        small = data.ready or session is None or data.source.rows() <= _SMALL_ROWS
        if not small and session:
            session.ready()
        dataset = preparing.prepare(run, data, preparing.in_process if small else shards.each)
        preparing.tell(dataset, self._screen.say)
        return dataset

    def _room_there(self, session: Session | None) -> Room:
        return _room(self._design.run, session.resources() if session else cluster_session.local_resources())

    def _conducting(self, source: Any, room: Room, **what: Any) -> Conductor:
        return Conductor(
            self._design,
            self._ledger,
            self._fleet,
            source,
            **({"role": "search"} | what),
            threads=self._design.run.scale.threads or room.cpus,
            gpus=room.gpus,
            say=self._screen.say,
        )

    def _population_step(self, dataset: Dataset) -> int | None:
        """Steps between two looks, where each must have a checkpoint to be cloned from."""
        run = self._design.run
        if run.sweep.scheduler != "pbt":
            return None
        return run.train.eval_every or run.steps_per_epoch(preparing.examples(run, dataset)["train"])

    def _conduct(self, session: Session | None, room: Room, population_step: int | None, search: Any) -> None:
        conductor, run, folder = self._conductor, self._design.run, self._design.folder
        assert conductor
        self._screen.say(f"room for trials: {room.arithmetic}")
        if session is None:
            trials.run_here(alone, conductor)
        else:
            session.ready()
            conductor.checkpoint_every = population_step
            population = conductor.population() if population_step else ()
            start = alone if room.workers == 1 else functools.partial(together, functools.partial(_launch, room, run.scale.retries))
            going = in_background(
                lambda: trials.run(
                    start,
                    conductor,
                    room,
                    retries=run.scale.retries,
                    scratch=folder.path / ".ray",
                    population=population,
                    every=run.sweep.grace,
                )
            )
            with self._screen.live(functools.partial(self._live, room, search)):
                going.result()
        if conductor.bug:
            raise WorkerFailed(conductor.bug)

    def _after_search(self) -> None:
        leader = board.best(self._searched(), self._design.metric, self._design.mode)
        if leader is None:
            causes = "; ".join(sorted({trial.cause for trial in self._searched() if trial.cause}))
            raise StorageError(f"no trial was trained to its end: {causes or 'none was begun'}")

    def _confirmed(self, session: Session | None, dataset: Dataset) -> confirm.Confirmed | None:
        settings = self._design.run.sweep
        if not settings.confirm:
            return None
        entrants, seeds = confirm.entrants(self._design, self._searched(), settings.confirm)
        listed = confirm.Listed(entrants, seeds, [trial for trial in self._ledger.trials.values() if trial.role == "confirm"])
        for trial in listed.failed:
            if trial.code == CLUSTER:
                self._ledger.reopen(trial.number)
        if listed.left:
            room = self._room_there(session)
            self._conductor = self._conducting(listed, room, role="confirm", total=listed.total, waiting=listed.waiting, begun=listed.known)
            self._screen.say(f"confirming the best {len(entrants)} with seeds {', '.join(map(str, seeds))}")
            self._conduct(session, room, None, None)
        return confirm.confirmed(self._design, self._ledger, entrants, seeds)

    def _concluded(self, search: Any, dataset: Dataset, confirmed: confirm.Confirmed | None, total: int) -> dict[str, Any]:
        self._describe(search, confirmed)
        self._fleet.finish()
        model = confirm.register(self._design, self._tracker.uri, dataset, confirmed) if confirmed else None
        self._tracker.close("FINISHED", {"stage": "finished"})
        result = self._result(confirmed, model)
        write_atomically(self._design.folder.result, json.dumps(result, indent=1))
        self._show(search, result, confirmed)
        return result

    def _abandon(self, status: str, tags: Mapping[str, str]) -> None:
        if self._conductor:
            self._conductor.stopping = True
        try:
            self._fleet.abandon(status, tags, patience_seconds=_LAST_WORD_SECONDS)
        except StorageError as error:  # the error that ended the sweep is the one to tell; this one only adds to it
            self._screen.say(str(error))

    # ---- showing it

    def _searched(self) -> list[Trial]:
        """Trials of the search that lie in the space, in their order."""
        base = {key: row["value"] for key, row in self._design.loaded.settings().items()}
        own = [trial for trial in list(self._ledger.trials.values()) if trial.role == "search"]
        if self._design.run.sweep.scheduler == "pbt":
            return own
        return [trial for trial in own if self._design.space.fitted(trial.params, base) is not None]

    def _live(self, room: Room, search: Any) -> RenderableType:
        """The table of the best, running and ended trials, with the time that is left."""
        assert self._conductor
        mine, metric = self._conductor.trials(), self._design.metric
        spent = [trial.seconds for trial in mine if trial.ended and trial.seconds]
        left = self._conductor.total - sum(trial.ended for trial in mine)
        eta = f"  ETA {left * sum(spent) / len(spent) / room.at_once:,.0f} s" if spent else ""
        counts = ", ".join(
            f"{sum(each.status == status for each in mine)} {status}" for status in ("running", "finished", "stopped", "failed")
        )
        head = f"{self._conductor.total} trials: {counts}{eta}"
        drawn = table("", board.columns(mine, metric), board.rows(mine, metric, self._design.mode))
        return Group(head, drawn, board.importances(search.importance()) if search else "")

    def _describe(self, search: Any, confirmed: confirm.Confirmed | None) -> None:
        links = {trial.number: self._link(trial) for trial in self._ledger.trials.values()}
        notes = [board.importances(search.importance()), *(confirmed.sentences if confirmed else ())]
        notes.append(f"[compare the trials]({self._comparison()})")
        title = f"sweep of {self._design.recipe} on {self._design.run.data.name}"
        self._fleet.describe(board.markdown(title, self._searched(), self._design.metric, self._design.mode, links=links, notes=notes))

    def _link(self, trial: Trial) -> str:
        run_id = trial.run_id or self._fleet.run_id(trial.number)
        return self._tracker.url_of(run_id) if run_id else ""

    def _comparison(self) -> str:
        return self._tracker.comparison(f"metrics.`{self._design.metric}`", ascending=self._design.mode == "min")

    def _result(self, confirmed: confirm.Confirmed | None, model: Any) -> dict[str, Any]:
        """The JSON of `raylway sweep`."""
        found = [self._row(trial) for trial in self._searched()]
        leader = board.best(self._searched(), self._design.metric, self._design.mode)
        return {
            "sweep_id": self._design.folder.path.name,
            "run_id": self._tracker.run_id,
            "status": "finished",
            "metric": self._design.metric,
            "mode": self._design.mode,
            "trials": found,
            "best": self._row(leader) if leader else None,
            "confirmed": confirmed.as_json() if confirmed else None,
            "model": vars(model) if model else None,
            "tracking_uri": mlflow.provenance.redact(self._tracker.uri),
            "run_url": self._tracker.run_url,
            "compare_url": self._comparison(),
            "seconds": time.time() - self._began,
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "run_id": trial.run_id,
            "params": trial.params,
            "metrics": trial.metrics,
            "status": trial.status,
            "seconds": trial.seconds,
            **({"cause": trial.cause} if trial.cause else {}),
        }

    def _show(self, search: Any, result: dict[str, Any], confirmed: confirm.Confirmed | None) -> None:
        screen, design = self._screen, self._design
        ended = self._searched()
        screen.table("", board.columns(ended, design.metric), board.rows(ended, design.metric, design.mode))
        if told := board.importances(search.importance()):
            screen.say(told)
        for sentence in confirmed.sentences if confirmed else ():
            screen.say(sentence)
        best = result["best"]["params"]
        screen.say(f"best     raylway train {design.recipe} {' '.join([*design.overrides_of_a_run, *space.overrides(best)])}")
        if not confirmed:
            screen.say(
                "confirm  the same command with sweep.confirm=3x5 trains the best three with five seeds, and judges them on the test rows"
            )
        if result["model"]:
            screen.say(f"model    {result['model']['uri']}")
        screen.say(f"compare  {result['compare_url']}")
        screen.say(f"look     raylway ui --storage {design.run.root}   then {result['run_url']}")


def _launch(room: Room, retries: int, member: Any, task: Task, say: Any) -> Any:
    """Workers for one trial, launched again where one is lost."""
    folder = task.job.folder
    scratch = folder.path / ".ray"
    return supervised(
        lambda: workers.launch(member, task, workers=room.workers, cpus=room.cpus, gpus=room.gpus, scratch=scratch),
        folder,
        retries=retries,
        say=say,
    )


def _space(recipe: str, overrides: Sequence[str], loaded: Loaded) -> Space:
    """The space, every end of it accepted by the settings. Raises RecipeError with every problem."""
    run = loaded.run
    found = space.read(run.sweep.space)
    space.check(found, lambda more: config.load(recipe, [*overrides, *more]))
    problems = []
    if run.sweep.search == "grid" and found.size() is None:
        endless = next(key for key, domain in found.items() if domain.values() is None)
        problems.append(f"sweep.search=grid: {endless} has no end of values; give grid(…), choice(…), randint or quniform")
    if run.sweep.scheduler == "pbt":
        if strange := [key for key in found if not key.startswith("optim.")]:
            problems.append(f"sweep.scheduler=pbt: {strange[0]} cannot change while a trial trains; it searches settings of optim.*")
        if run.scale.workers != 1:
            problems.append(f"sweep.scheduler=pbt: trials of a population have one worker, not scale.workers={run.scale.workers}")
    if run.data.mode == "stream":
        problems.append("data.mode=stream: trials share prepared data; leave it out")
    if run.sweep.confirm and "train.seed" in found:
        problems.append("sweep.confirm: tries other seeds, so train.seed cannot be searched as well")
    if problems:
        raise RecipeError(*problems)
    return found


def _ranking(run: Run) -> tuple[str, str]:
    """(metric, mode) by which trials are compared. Raises RecipeError."""
    headline, settings = run.model.headline, run.sweep
    metric = settings.metric or f"val/{headline.metric}"
    metric = metric if metric.startswith("val/") else f"val/{metric}"
    if settings.mode:
        return metric, settings.mode
    if metric == f"val/{headline.metric}":
        return metric, headline.mode
    if metric == "val/loss":
        return metric, "min"
    raise RecipeError(f"sweep.metric={metric}: say which direction is better, sweep.mode=max or sweep.mode=min")


def _method(run: Run, found: Space) -> str:
    if run.sweep.search:
        return run.sweep.search
    return "grid" if all(domain.kind == "grid" for domain in found.values()) else "tpe"


def _room(run: Run, resources: cluster_session.Resources) -> Room:
    if not run.scale.workers:
        return Room(
            1, 1, run.scale.cpus or resources.cpus, float(run.scale.gpus or 0), "scale.workers=0: one trial at once, in this process"
        )
    limits = [limit for limit in (run.sweep.concurrent, run.sweep.trials) if limit]
    most = min(limits) if limits else None
    return trials.room(resources, workers=run.scale.workers, cpus=run.scale.cpus, gpus=run.scale.gpus, most=most)


def _planned(loaded: Loaded, found: Space, room: Room | None, screen: Screen) -> dict[str, Any]:
    """What would be searched, and the arithmetic of how many fit at once; nothing is started."""
    result = plan.plan(loaded, screen)
    size, run = found.size(), loaded.run
    points = "more points than can be counted" if size is None else f"{size:,} points"
    trials_asked = run.sweep.trials or (size if _method(run, found) == "grid" and size else _TRIALS)
    screen.say(
        f"space      {points}; {min(trials_asked, size or trials_asked)} trials by {_method(run, found)}, scheduler {run.sweep.scheduler}"
    )
    screen.say(f"room       {room.arithmetic if room else 'told when the cluster is reached'}")
    sweep_part = {"space": run.sweep.space, "points": size, "trials": trials_asked, "room": room.arithmetic if room else None}
    return result | {"sweep": sweep_part | {"at_once": room.at_once if room else None}}


def _folder(run: Run, data: preparing.Plan) -> RunFolder:
    """The sweep's folder: of the settings that are not searched, so that a longer or another search is the same sweep."""
    identity = run.identity(data.fingerprint)
    return train.claimed(run, run.name or f"sweep-{run.recipe}-{train.slug(data.source.label)}-{identity[:8]}", identity)


def _going_on(waiting: Sequence[Trial]) -> str:
    return f", {len(waiting)} of them go on" if waiting else ""
