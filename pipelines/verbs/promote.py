"""Promote: compare a candidate with the champion on the candidate's test rows, by the rules of its recipe and a paired test.

The verdict is kept with the version: the table of rules as its description, the decision as a tag. promotions.py moves the alias.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster import ray_data
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.data.encode import Each
from pipelines.data.preparation import in_process, plan_new, prepare
from pipelines.errors import RecipeError, StorageError, TrackingError
from pipelines.evaluation import models, rules, split_scores
from pipelines.evaluation.models import Model
from pipelines.evaluation.rules import SPLIT, Rule, Verdict
from pipelines.screen import Screen
from pipelines.tracking import lookup, pages, promotions, provenance, registry
from pipelines.tracking.promotions import Conflict, Standing
from pipelines.tracking.registry import Registered
from workloads.base import DataError
from workloads.judging import Judged

if TYPE_CHECKING:
    from pipelines.tracking.lookup import MlflowClient

_ALLOWED = ("promote.", "scale.", "storage", "track.uri")


def promote(called: str, overrides: Sequence[str], *, force: bool = False, reason: str | None = None, screen: Screen) -> dict[str, Any]:
    """Judge the registered version that `called` names (of a name alone, its candidate) and make it champion if it keeps its rules.

    The result is JSON (DESIGN §7); "decision" is promoted or refused. Raises RecipeError, DataError, StorageError, ClusterError.
    """
    if force and not (reason or "").strip():
        raise RecipeError("--force: say why with --reason; it is written on the version")
    for override in overrides:
        if not override.startswith(_ALLOWED):
            raise RecipeError(f"{override}: a candidate is judged on its own test rows; set promote.*, scale.*, storage and track.uri only")
    model = models.find(called, overrides, alias=promotions.CANDIDATE)
    if model.version is None:
        raise RecipeError(f"{called}: registered no model, so there is no version to promote")
    for warning in model.warnings:
        screen.say(f"warning: {warning}")
    version = model.version
    with lookup.opened(model.tracking_uri) as client:
        now = promotions.standing(client, version.name)
    if now.champion == version.version:
        screen.say(f"{version.uri} is champion already")
        return _result(model, "promoted", Verdict([]), now, now)
    try:
        with ray_data.executor(in_process=not model.run.scale.workers) as each:
            verdict = judge(model, now, each)
    except (DataError, StorageError) as error:
        if not force:
            raise
        verdict = Verdict([Rule("judging", "to be judged", str(error), False)])
    for warning in verdict.warnings:
        screen.say(f"warning: {warning}")
    head, *rows = rules.table(verdict.rules)
    champion = f"models:/{version.name}/{now.champion}" if now.champion is not None else "no champion"
    screen.table(f"{version.uri} against {champion}", head, rows or [["no rule is stated", "", "", "ok"]])
    return decide(model, verdict, now, force=force, reason=(reason or "").strip(), screen=screen)


def judge(model: Model, now: Standing, each: Each) -> Verdict:
    """The verdict on a registered version, by its own test rows. Raises RecipeError, DataError, StorageError."""

    def encode(other: Model) -> Dataset:
        plan = plan_new(other.run, other.encoding, split=SPLIT, called=other.called)
        return prepare(other.run, plan, each, encoding=other.encoding)

    dataset, columns = preparing.restored(model.run, model.fingerprint, each, called=model.called), {}
    if names := list(model.run.promote.slices):
        plan = plan_new(model.run, model.encoding, split=SPLIT, called=model.called)
        columns = split_scores.column_values(names, plan.selection, plan.pieces, model, dataset, SPLIT)

    def score(other: Model, dataset: Dataset) -> Judged:
        return split_scores.judged(other, dataset, SPLIT, each)

    return rules.judge(model, now, dataset, columns, encode=encode, score=score)


def roll_back(called: str, overrides: Sequence[str], *, reason: str | None, screen: Screen) -> dict[str, Any]:
    """Make the previous champion champion again, without judging it. Raises RecipeError where there is none."""
    uri, root, *_ = lookup.place(overrides)
    name = lookup.name_and_version(called, "")[0] if called.startswith(lookup.URI) else called
    with lookup.opened(uri) as client:
        if name not in lookup.models(client):
            raise RecipeError(lookup.unknown_version(client, name, promotions.CHAMPION))
        before = promotions.standing(client, name)
        try:
            entry = promotions.roll_back(client, name, storage=root, reason=reason or "")
        except Conflict as conflict:
            return _refused_by(conflict, name, uri, screen)
        after = promotions.standing(client, name)
        left = before.champion if before.champion is not None else before.lost
        if left is not None and left in lookup.versions(client, name):
            _mark(client, name, left, "rolled back", reason or "", [])
    screen.say(f"models:/{name}@champion is version {entry.version} again" + (f", and not {left}" if left is not None else ""))
    return {
        "decision": promotions.ROLLED_BACK,
        "model": name,
        "champion": after.champion,
        "previous": after.previous,
        "was": left,
        "reason": reason or "",
        "rules": [],
        "tracking_uri": provenance.redact(uri),
    }


def promote_first(registered: Registered, *, storage: str, uri: str, screen: Screen) -> None:
    """Judge a version and make it champion, if its name never had one and it passes the rules that need none."""
    with lookup.opened(uri) as client:
        now = promotions.standing(client, registered.name)
    if now.champion is not None or now.head:
        return
    model = models.find(registered.uri, [f"storage={storage}", f"track.uri={uri}"])
    try:  # in this process: the run's own test rows are few, and Ray has been left already
        decide(model, judge(model, now, in_process), now, force=False, reason=promotions.FIRST, screen=screen)
    except TrackingError:  # tried again when MLflow can be reached
        raise
    except (RecipeError, DataError, StorageError) as error:  # the training is done, and its model stands
        screen.say(f"{registered.uri} is not promoted: it could not be judged: {error}")


def decide(model: Model, verdict: Verdict, now: Standing, *, force: bool, reason: str, screen: Screen) -> dict[str, Any]:
    """Move the alias if the rules hold or `force` is given, and record on the version why."""
    version = model.version
    assert version
    with lookup.opened(model.tracking_uri) as client:
        if not verdict.holds and not force:
            why = rules.sentence(verdict.rules)
            _mark(client, version.name, version.version, "refused", why, verdict.rules)
            screen.say(f"refused: {why}")
            return _result(model, "refused", verdict, now, now) | {"reason": why}
        kind = promotions.FORCED if force else promotions.PROMOTED
        try:
            promotions.promote(client, version.name, version.version, judged_against=now, storage=model.run.root, kind=kind, reason=reason)
        except Conflict as conflict:
            after = promotions.standing(client, version.name)
            if after.champion == version.version:  # another promoted the same one, and wrote why
                screen.say(f"{version.uri} is champion already")
                return _result(model, "promoted", verdict, now, after)
            _mark(client, version.name, version.version, "refused", str(conflict), verdict.rules)
            return _refused_by(conflict, version.name, model.tracking_uri, screen) | {"rules": [asdict(rule) for rule in verdict.rules]}
        _mark(client, version.name, version.version, kind, reason, verdict.rules)
        after = promotions.standing(client, version.name)
    instead = f", and not {now.champion}" if now.champion is not None else ""
    screen.say(f"{version.uri} is champion now{instead}" + (f" (forced: {reason})" if force else ""))
    return _result(model, "promoted", verdict, now, after) | {"reason": reason, "forced": force}


def _mark(client: MlflowClient, name: str, version: int, decision: str, why: str, found: Sequence[Rule]) -> None:
    """Write the verdict onto the version's page."""
    head, *rows = rules.table(found)
    lines = [f"**{decision}** {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}" + (f": {why}" if why else "")]
    if rows:
        lines += ["", pages.table(head, rows, pad="")]
    tags = {"raylway.decision": decision, "raylway.reason": why, "raylway.rules": json.dumps([asdict(rule) for rule in found])}
    registry.mark(client, name, version, tags=tags, description="\n".join(lines))


def _refused_by(conflict: Conflict, name: str, uri: str, screen: Screen) -> dict[str, Any]:
    screen.say(f"refused: {conflict}")
    with lookup.opened(uri) as client:
        now = lookup.aliases(client, name)
    current = {"champion": now.get(promotions.CHAMPION), "previous": now.get(promotions.PREVIOUS)}
    return {"decision": "refused", "model": name, **current, "reason": str(conflict), "rules": [], "tracking_uri": provenance.redact(uri)}


def _result(model: Model, decision: str, verdict: Verdict, before: Standing, after: Standing) -> dict[str, Any]:
    assert model.version
    return {
        "decision": decision,
        "model": model.version.name,
        "candidate": model.version.version,
        "champion": after.champion,
        "previous": after.previous,
        "was": before.champion,
        "forced": False,
        "reason": "",
        "rules": [asdict(rule) for rule in verdict.rules],
        "warnings": list(verdict.warnings),
        "tracking_uri": provenance.redact(model.tracking_uri),
    }
