"""Reproduce: train a run again from what was written down of it, and compare every number of its curves, bit for bit.

The original stays as it is: the repetition has a folder of its own, which goes when it has been compared, and no page in MLflow. Only the
verdict is noted on the original's page. The learning rate follows the whole run's schedule however few steps are repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines import rerun
from pipelines.config import trained_with
from pipelines.data import dataset
from pipelines.data import preparation as preparing
from pipelines.data.preparation import Plan
from pipelines.errors import RecipeError, StorageError
from pipelines.rerun import NOT_CURVES, Curves, Pair
from pipelines.run_record import check_writable
from pipelines.run_settings import Run
from pipelines.screen import Screen
from pipelines.tracking import facts, lookup
from pipelines.tracking.facts import Cause, Facts, causes
from pipelines.tracking.lookup import TrackedRun

_ALLOWED, _ALLOWED_TEXT = ("data.prepared=", "data.cache=", "scale."), "storage, track.uri, data.prepared, data.cache and scale.*"


@dataclass(frozen=True)
class Recorded:
    """The run that is to be repeated, as it was recorded."""

    kept: TrackedRun
    run: Run
    facts: Facts
    curves: Curves

    @property
    def steps(self) -> int:
        """The last step with a recorded training loss."""
        return max(self.curves["loss"])


def reproduce(called: str, overrides: Sequence[str], *, steps: int | None, screen: Screen) -> dict[str, Any]:
    """Train the run that `called` names again, all of it or its first `steps`, and say whether each number is what it was.

    Raises RecipeError for an unknown run and for one of which there is nothing to compare, and the errors of training.
    """
    began = time.time()
    uri, root, others, _ = lookup.place(overrides)
    with lookup.opened(uri) as client:
        recorded = _recorded(client, called, others, root)
    until = _until(recorded, steps)
    check_writable(root)
    plan = preparing.plan(recorded.run)
    for cause in causes(recorded.facts, _now(recorded.run, plan)):
        screen.say(f"warning: {cause}")
    if change := _change_of_data(plan, recorded.facts):
        screen.say(f"  {change}")
    screen.say(f"{recorded.kept.name}: repeating steps 1 to {until:,}")
    with rerun.scratch(root, recorded.kept.name, recorded.run, plan) as folder:
        outcome = rerun.trained(recorded.run, plan, folder, until, screen)
        now = rerun.curves(folder)
    mismatch, compared = rerun.first_mismatch(recorded.curves, now)
    weights = {"recorded": recorded.kept.tags.get("weights_sha256"), "now": outcome and outcome.weights_sha256}
    complete = bool(outcome and weights["recorded"] and until == recorded.steps)
    same = mismatch is None and (not complete or weights["recorded"] == weights["now"])
    likely = [] if same else causes(recorded.facts, _now(recorded.run, plan, outcome), mismatch.size if mismatch else None)
    verdict = f"bit for bit, {until:,} steps" if same else f"differs, first at step {mismatch.step if mismatch else until:,}"
    with suppress(StorageError), lookup.opened(uri) as client:  # a note for those who read the page; the answer does not depend on it
        facts.write(client, recorded.kept.run_id, tags={"raylway.reproduced": f"{time.strftime('%Y-%m-%d', time.gmtime())}: {verdict}"})
    result = {
        "reproduced": same,
        "run_id": recorded.kept.run_id,
        "run_name": recorded.kept.name,
        "steps": until,
        "compared": compared,
        "first_difference": mismatch and asdict(mismatch),
        "weights_sha256": weights if complete else None,
        "causes": [asdict(cause) for cause in likely],
        "seconds": time.time() - began,
    }
    _show(result, mismatch, likely, screen)
    return result


def _recorded(client: Any, called: str, overrides: Sequence[str], root: Path) -> Recorded:
    if wrong := [override for override in overrides if not override.startswith(_ALLOWED)]:
        raise RecipeError(*(f"{override}: a run is repeated as it was; only {_ALLOWED_TEXT} can be given" for override in wrong))
    kept = lookup.named(client, called)
    threads = [f"scale.threads={kept.tags['raylway.threads']}"] if "raylway.threads" in kept.tags else []
    run = trained_with(facts.config(client, kept), [*threads, *overrides, f"storage={root}"])
    if run.data.mode == "stream":
        raise RecipeError(f"{kept.name}: data.mode=stream gives rows in no promised order, so such a run cannot be repeated bit for bit")
    names = [name for name in kept.metrics if not name.startswith(NOT_CURVES)]
    curves = {name: {point.step: point.value for point in client.get_metric_history(kept.run_id, name)} for name in names}
    if "loss" not in curves:
        raise RecipeError(f"{kept.name}: ended before its first point (train.log_every={run.train.log_every}); there is nothing to compare")
    return Recorded(kept, run, facts.facts(client, kept), curves)


def _until(recorded: Recorded, steps: int | None) -> int:
    first = min(recorded.curves["loss"])
    if steps is not None and steps < first:
        raise RecipeError(f"--steps {steps}: the first point of {recorded.kept.name} is at step {first:,}; give that many steps or more")
    return min(steps or recorded.steps, recorded.steps)


def _now(run: Run, plan: Plan, outcome: Any = None) -> Facts:
    """Facts of the repetition, named as in `facts`; with those that a worker measured, once it has trained."""
    here = facts.here()
    measured = {"threads": str(outcome.threads), "hardware": outcome.hardware} if outcome else {}
    return {
        "code": here["code"] | {"network": run.network_code[:12]},
        "data": {"fingerprint": plan.fingerprint},
        "packages": here["packages"],
        "environment": {"workers": str(run.scale.workers)} | measured,
    }


def _change_of_data(plan: Plan, recorded: Facts) -> str:
    """Say what changed in the data, if the dataset that the run was trained on is still kept."""
    before = recorded["data"].get("fingerprint", plan.fingerprint)
    if before == plan.fingerprint or not plan.store.has(before, dataset.MANIFEST):
        return ""
    source = dataset.Dataset.open(dataset.fetch(plan.store, before)).manifest.source
    changed = [name for name in {**source, **plan.identity} if source.get(name) != plan.identity.get(name)]
    if changed:
        return f"changed since: {', '.join(sorted(changed)[:5])}"
    return "the source is what it was; the settings of the data or the code that prepares them are not"


def _show(result: Mapping[str, Any], mismatch: Pair | None, likely: Sequence[Cause], screen: Screen) -> None:
    compared = f"{result['compared']:,} numbers"
    if result["reproduced"]:
        weights = f"; weights {result['weights_sha256']['now'][:12]}" if result["weights_sha256"] else ""
        screen.say(f"REPRODUCED bit for bit: {result['steps']:,} steps, {compared} are what they were{weights}")
        return
    if mismatch is None:
        screen.say(f"NOT REPRODUCED: {compared} are what they were, but the weights are not")
    else:
        screen.say(f"NOT REPRODUCED: the first difference is at step {mismatch.step:,}: {mismatch}")
    for cause in likely:
        screen.say(f"likely cause: {cause}")
    if not likely:
        screen.say("likely cause: an operation that is not deterministic, for nothing that was written down differs: code, data, packages, "
                   "threads, workers and hardware are what they were")  # fmt: skip
