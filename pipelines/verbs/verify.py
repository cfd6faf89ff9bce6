"""Verify: check on this machine, or on this cluster, the two promises that hold for every training.

`resume`: stopped half way and resumed by new workers, it ends with the bits of an undisturbed one. `parity`: the curve of several workers
is that of one, but for rounding. Nothing is kept, and nothing is logged to MLflow.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from typing import Any, Literal

from cluster import session as cluster_session
from pipelines import rerun
from pipelines.config import Loaded, load
from pipelines.data import preparation as preparing
from pipelines.data.preparation import Plan
from pipelines.errors import Diverged, RecipeError
from pipelines.rerun import Curves
from pipelines.run_record import check_writable
from pipelines.run_settings import Run
from pipelines.screen import Screen

What = Literal["resume", "parity"]
TOLERANCE = 1e-4
"""Of a number: what the order of additions may move it by in a few steps of float32. What depends on the workers moves it by far more."""
_EACH_STEP = "train.log_every=1"


def verify(what: What, loaded: Loaded, *, steps: int, screen: Screen) -> dict[str, Any]:
    """Check the promise `what` on the first `steps` steps of a recipe. Raises RecipeError where there is nothing to promise."""
    began, run = time.time(), loaded.run
    if run.data.mode == "stream":
        raise RecipeError("data.mode=stream gives rows in no promised order, so there is nothing to verify")
    if what == "parity" and run.scale.workers.most < 2:
        raise RecipeError(f"scale.workers={run.scale.workers}: parity compares several workers with one; write scale.workers=2")
    check_writable(run.root)
    plan = preparing.plan(run)
    with contextlib.ExitStack() as stack:
        if run.scale.workers:  # one cluster for all trainings: it takes seconds to start
            stack.enter_context(cluster_session.connect()).ready()
        verdict = (_check_resume if what == "resume" else _check_parity)(loaded, plan, steps, screen)
    result = {"what": what, "recipe": run.recipe, "steps": steps, "workers": run.scale.workers.most, **verdict}
    return result | {"seconds": time.time() - began}


def _check_resume(loaded: Loaded, plan: Plan, steps: int, screen: Screen) -> dict[str, Any]:
    run = _logged(loaded)
    screen.say(f"undisturbed: steps 1 to {steps:,}")
    undisturbed, recorded = _trained(run, plan, [steps], screen)
    half = undisturbed.steps // 2
    if not half:
        raise RecipeError(f"train.steps={undisturbed.steps}: a training of one step cannot be stopped half way")
    screen.say(f"stopped after step {half:,}, and resumed by new workers")
    resumed, now = _trained(run, plan, [half, steps], screen)
    mismatch, compared = rerun.first_mismatch(recorded, now)
    weights = {"undisturbed": undisturbed.weights_sha256, "resumed": resumed.weights_sha256}
    same = mismatch is None and weights["undisturbed"] == weights["resumed"]
    if same:
        screen.say(f"VERIFIED bit for bit: {compared:,} numbers and the weights, {undisturbed.weights_sha256[:12]}")
    else:
        screen.say(f"NOT VERIFIED: {f'first at step {mismatch.step:,}: {mismatch}' if mismatch else 'the weights differ'}")
    details = {"resumed_from_step": resumed.resumed_from_step, "compared": compared, "weights_sha256": weights}
    return {"verified": same, **details, "first_difference": mismatch and asdict(mismatch)}


def _check_parity(loaded: Loaded, plan: Plan, steps: int, screen: Screen) -> dict[str, Any]:
    several = _logged(loaded)
    # the cut into micro-batches is that of the several: how a batch is cut decides the seeds of dropout
    one = _logged(loaded, "scale.workers=1", f"train.micro_batch={several.micro_batch}")
    curves = []
    for run in (one, several):
        screen.say(f"{run.scale.workers} worker{'s' * (run.scale.workers.most > 1)}: steps 1 to {steps:,}")
        curves.append(_trained(run, plan, [steps], screen)[1])
    pairs = rerun.pairs(*curves)
    worst = max(pairs, key=lambda pair: pair.size)
    verified = worst.size <= TOLERANCE
    screen.say(
        f"{'VERIFIED' if verified else 'NOT VERIFIED'}: {len(pairs):,} numbers, none of which may be off by more than {TOLERANCE:g} of it"
    )
    screen.say(f"the most, at step {worst.step:,}: {worst}")
    details = {"compared": len(pairs), "tolerance": TOLERANCE}
    return {"verified": verified, **details, "largest_difference": asdict(worst) | {"size": worst.size}}


def _trained(run: Run, plan: Plan, stops: list[int], screen: Screen) -> tuple[Any, Curves]:
    """Train to each of `stops` in turn, each time by new workers: the outcome of the last, and every logged number."""
    with rerun.scratch(run.root, f"verify-{run.recipe}", run, plan) as folder:
        for until in stops:
            outcome = rerun.trained(run, plan, folder, until, screen)
            if outcome is None:
                raise Diverged(f"training diverged before step {until:,}; there is nothing to compare")
        return outcome, rerun.curves(folder)


def _logged(loaded: Loaded, *overrides: str) -> Run:
    """The run with every step logged, and with further overrides."""
    return load(loaded.words[0], [*loaded.words[1:], _EACH_STEP, *overrides]).run
