"""Evaluate: a model on a split of its own data or on data it has not seen, with the preparing code and the encoding of its training."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster import ray_data
from pipelines.data import preparation as preparing
from pipelines.data.dataset import Dataset
from pipelines.data.encode import Each
from pipelines.data.preparation import Plan, plan_new, prepare
from pipelines.data.splits import SPLITS
from pipelines.errors import RecipeError
from pipelines.evaluation import models, reports, split_scores
from pipelines.evaluation.models import Model
from pipelines.evaluation.reports import Report
from pipelines.screen import Screen
from pipelines.tracking import client as mlflow_client
from pipelines.tracking import facts, lookup
from workloads.judging import Judged, Judging

_SEVERAL = {"data", "data.train", "data.validation", "data.test"}
_PLACES = {"data.prepared", "data.cache"}


@dataclass(frozen=True)
class Examples:
    """The examples a model is judged on: a split of a prepared dataset, its name, and the source that it came from if it is new data."""

    dataset: Dataset
    split: str
    name: str
    plan: Plan | None


def evaluate(called: str, overrides: Sequence[str], *, columns: Sequence[str], split: str | None, screen: Screen) -> dict[str, Any]:
    """Judge the model that `called` names. The result is JSON (DESIGN §7), and is written to the model's MLflow run.

    Raises RecipeError, DataError, StorageError, ClusterError.
    """
    began = time.monotonic()
    if split and split not in SPLITS:
        raise RecipeError(f"--split {split}: no such split; write {', '.join(SPLITS)}")
    _names_data(overrides)
    model = models.find(called, overrides)
    for warning in model.warnings:
        screen.say(f"warning: {warning}")
    judging = model.workload.judging(model.encoding)
    with ray_data.executor(in_process=not model.run.scale.workers) as each:
        examples = _examples(model, overrides, split, each)
        values = {}
        if columns:
            plan = examples.plan or plan_new(model.run, model.encoding, split=examples.split, called=model.called)
            values = split_scores.column_values(columns, plan.selection, plan.pieces, model, examples.dataset, examples.split)
        preparing.tell(examples.dataset, screen.say)
        started = time.monotonic()
        judged = split_scores.judged(model, examples.dataset, examples.split, each)
        seconds = time.monotonic() - started
    report = replace(reports.report(judging, judged, values), naive=_naive(model, examples))
    written = _write(model, judging, judged, report, examples, values)
    result = _result(model, examples, report, written) | {
        "rows_per_second": len(judged) / seconds,
        "seconds": {"answers": seconds, "total": time.monotonic() - began},
    }
    _show(result, report, screen)
    return result


def _examples(model: Model, overrides: Sequence[str], split: str | None, each: Each) -> Examples:
    """The examples of data that `overrides` name, else of a split (the test rows) of the data that the model was trained on."""
    if _names_data(overrides):
        plan = plan_new(model.run, model.encoding, split=split, called=model.called)
        label = "-".join(re.findall(r"[a-z0-9_.]+", plan.source.label.lower()))[:40].strip("-.") or "data"
        dataset = prepare(model.run, plan, each, encoding=model.encoding)
        return Examples(dataset, plan.splits[0], f"{label}-{split}" if split else label, plan)
    dataset = preparing.restored(model.run, model.fingerprint, each, called=model.called)
    return Examples(dataset, split or "test", split or "test", None)


def _naive(model: Model, examples: Examples) -> dict[str, float]:
    """Metrics of the strongest naive baseline; none for new data, which have no training rows to fit one on."""
    if examples.plan is not None:
        return {}
    workload = model.workload
    train = workload.examples(examples.dataset.train, training=True)
    scored = workload.examples(getattr(examples.dataset, examples.split), training=False)
    metric, mode = workload.headline
    best = max if mode == "max" else min
    return dict(best(workload.baselines(train, scored, model.encoding).values(), key=lambda scores: scores[metric]))


def _names_data(overrides: Sequence[str]) -> bool:
    """True where the overrides name new data. Raises RecipeError where they name several, or say how to read what is prepared already."""
    given = {override.partition("=")[0] for override in overrides}
    if several := given & _SEVERAL:
        raise RecipeError(f"{min(several)}: what a model is evaluated on is one source; write data.source=…")
    if "data.source" in given:
        return True
    if idle := sorted(key for key in given if key.startswith("data.") and key not in _PLACES):
        raise RecipeError(f"{idle[0]}: goes with data.source=…; the rows that a model was trained and tested on are what they are")
    return False


def _write(
    model: Model, judging: Judging, judged: Judged, report: Report, examples: Examples, values: dict[str, np.ndarray]
) -> dict[str, str | None]:
    """Add scores, figures, page and rows to the model's MLflow run; their place, as JSON: null for a run that MLflow does not know."""
    if not model.run_id:
        return {"artifacts": None, "run_url": None}
    place = f"evaluations/{examples.name}"
    whole = report.whole
    scores = {f"eval/{examples.name}/{_key(name)}": value for name, value in whole.metrics.items() if np.isfinite(value)}
    for name, interval in whole.intervals.items():
        ends = {"low": interval.low, "high": interval.high}
        scores |= {f"eval/{examples.name}/{_key(name)}_{end}": value for end, value in ends.items() if np.isfinite(value)}
    with tempfile.TemporaryDirectory(prefix="raylway-") as scratch, lookup.opened(model.tracking_uri) as client:
        files = {name: Path(scratch) / name for name in ("rows.parquet", "report.json", "report.md")}
        reports.write_table(files["rows.parquet"], judging.table(judged), values)
        files["report.json"].write_text(json.dumps(report.as_json(), indent=1))
        files["report.md"].write_text(reports.markdown(report, of=model.called, on=examples.name))
        figures = {f"{place}/{name}.png": figure for name, figure in judging.figures(judged).items()}
        facts.write(client, model.run_id, metrics=scores, files={f"{place}/{name}": path for name, path in files.items()}, figures=figures)
        experiment_id = client.get_run(model.run_id).info.experiment_id
    return {"artifacts": place, "run_url": mlflow_client.run_page(model.tracking_uri, experiment_id, model.run_id)}


def _result(model: Model, examples: Examples, report: Report, written: dict[str, str | None]) -> dict[str, Any]:
    summary = examples.dataset.manifest.summary
    return {
        "model": model.version.uri if model.version else model.called,
        "run_id": model.run_id,
        "data": model.run.data.name,
        "split": examples.split if examples.plan is None or examples.plan.divided else None,
        "fingerprint": examples.dataset.manifest.fingerprint,
        "skipped": summary.skipped,
        **report.as_json(),
        **written,
    }


def _show(result: dict[str, Any], report: Report, screen: Screen) -> None:
    of = f"the {result['split']} rows of {result['data']}" if result["split"] else result["data"]
    screen.say(f"{result['model']} on {of}: {result['rows']:,} examples")
    for title, (head, *rows) in reports.tables(report):
        screen.table(title, head, rows)
    if report.block > 1:
        screen.say(f"intervals are drawn in blocks of {report.block:,} examples, for neighbours are not independent")
    if result["run_url"]:
        screen.say(f"look     {result['run_url']}   {result['artifacts']}/")


def _key(name: str) -> str:
    """A metric's name with nothing in it that MLflow refuses (a class may be called anything)."""
    return re.sub(r"[^\w/ .-]", "_", name, flags=re.ASCII)[:150]
