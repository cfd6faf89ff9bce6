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

from pipelines import newdata
from pipelines.data import dataset as prepared
from pipelines.data import preparation as preparing
from pipelines.data.dataset import MANIFEST, Dataset
from pipelines.data.preparation import Each
from pipelines.data.splits import SPLITS
from pipelines.data.store import store_of
from pipelines.errors import RecipeError
from pipelines.evaluation import models, reports, slices, split_scores
from pipelines.evaluation.models import Model
from pipelines.evaluation.reports import Report
from pipelines.executor import hands
from pipelines.newdata import Rows
from pipelines.screen import Screen
from pipelines.tracking import client as mlflow_client
from pipelines.tracking import facts, lookup
from workloads.base import DataError
from workloads.judging import Judged, Judging

_SEVERAL = {"data", "data.train", "data.validation", "data.test"}
_PLACES = {"data.prepared", "data.cache"}


@dataclass(frozen=True)
class Chosen:
    """The examples a model is judged on: a split of a prepared dataset, what that is called, and the source it came from if it is new."""

    dataset: Dataset
    split: str
    name: str
    rows: Rows | None


def evaluate(called: str, overrides: Sequence[str], *, columns: Sequence[str], split: str | None, screen: Screen) -> dict[str, Any]:
    """Judge the model that `called` names; what was found, which is also written to its MLflow run, as JSON (DESIGN §7).

    Raises RecipeError, DataError, StorageError, ClusterError.
    """
    began = time.monotonic()
    if split and split not in SPLITS:
        raise RecipeError(f"--split {split}: no such split; write {', '.join(SPLITS)}")
    _given(overrides)
    model = models.find(called, overrides)
    for warning in model.warnings:
        screen.say(f"warning: {warning}")
    judging = model.workload.judging(model.encoding)
    with hands(model.run) as each:
        chosen = choose(model, overrides, split, each)
        source = chosen.rows or (newdata.rows_of(model, split=chosen.split) if columns else None)
        if columns and source:
            slices.check(columns, source.selection, judging.told_by)
        preparing.tell(chosen.dataset, screen.say)
        asked = time.monotonic()
        judged = split_scores.judged(model, chosen.dataset, chosen.split, each)
        seconds = time.monotonic() - asked
        values = sliced(model, judging, chosen, source, columns, len(judged)) if source else {}
    report = replace(reports.report(judging, judged, values), naive=_naive(model, chosen))
    written = _write(model, judging, judged, report, chosen, values)
    result = _result(model, chosen, report, written) | {
        "rows_per_second": len(judged) / seconds,
        "seconds": {"answers": seconds, "total": time.monotonic() - began},
    }
    _show(result, report, screen)
    return result


def choose(model: Model, overrides: Sequence[str], split: str | None, each: Each) -> Chosen:
    """The examples to judge a model on: those of data that `overrides` name, else a split (the test rows) of what it was trained on."""
    if _given(overrides):
        rows = newdata.rows_of(model, split=split)
        label = _slug(rows.selection.source.label)
        return Chosen(newdata.encoded(model, rows, each), rows.split, f"{label}-{split}" if split else label, rows)
    return Chosen(own(model, each), split or "test", split or "test", None)


def own(model: Model, each: Each) -> Dataset:
    """The dataset that the model was trained on; made anew where it is gone. Raises DataError if that gives another."""
    store = store_of(model.run)
    if store.has(model.fingerprint, MANIFEST):
        return prepared.proven(store, model.fingerprint)
    plan = preparing.plan(model.run)
    if plan.fingerprint != model.fingerprint:
        raise DataError(
            f"{model.called}: its data {model.fingerprint} are not in {store.place} any more, and {model.run.data.name} is now "
            f"{plan.fingerprint}: its content, or the code that prepares it, has changed; name data to judge on with data.source=…"
        )
    return preparing.prepare(model.run, plan, each)


def sliced(model: Model, judging: Judging, chosen: Chosen, source: Rows, columns: Sequence[str], examples: int) -> dict[str, np.ndarray]:
    """The value of each column of each example. Raises DataError if the source is not any more what the dataset was made of."""
    there = source.selection.source.identity()
    if changed := [name for name, content in there.items() if chosen.dataset.manifest.source.get(name) != content]:
        raise DataError(f"{changed[0]}: changed since {model.called} was trained on it, so its columns cannot slice the rows kept")
    assert judging.told_by is not None or not columns
    told_by = judging.told_by or 0
    return slices.read(columns, source.selection, source.pieces, chosen.split, model.encoding, examples=examples, told_by=told_by)


def _naive(model: Model, chosen: Chosen) -> dict[str, float]:
    """The strongest naive answer's metrics; nothing for new data, which have no training rows to be naive by."""
    if chosen.rows is not None:
        return {}
    workload = model.workload
    train = workload.examples(chosen.dataset.train, training=True)
    there = workload.examples(getattr(chosen.dataset, chosen.split), training=False)
    metric, mode = workload.headline
    best = max if mode == "max" else min
    return dict(best(workload.baselines(train, there, model.encoding).values(), key=lambda scores: scores[metric]))


def _given(overrides: Sequence[str]) -> bool:
    """Whether the overrides name data. Raises RecipeError where they name several, or say how to read what is prepared already."""
    given = {override.partition("=")[0] for override in overrides}
    if several := given & _SEVERAL:
        raise RecipeError(f"{min(several)}: what a model is evaluated on is one source; write data.source=…")
    if "data.source" in given:
        return True
    if idle := sorted(key for key in given if key.startswith("data.") and key not in _PLACES):
        raise RecipeError(f"{idle[0]}: goes with data.source=…; the rows that a model was trained and tested on are what they are")
    return False


def _write(
    model: Model, judging: Judging, judged: Judged, report: Report, chosen: Chosen, values: dict[str, np.ndarray]
) -> dict[str, Any] | None:
    """Scores, figures, page and rows to the model's MLflow run: where they are, or None for a run that MLflow does not know."""
    if not model.run_id:
        return None
    place = f"evaluations/{chosen.name}"
    told = report.whole
    scores = {f"eval/{chosen.name}/{_key(name)}": value for name, value in told.metrics.items() if np.isfinite(value)}
    for name, interval in told.intervals.items():
        ends = {"low": interval.low, "high": interval.high}
        scores |= {f"eval/{chosen.name}/{_key(name)}_{end}": value for end, value in ends.items() if np.isfinite(value)}
    with tempfile.TemporaryDirectory(prefix="raylway-") as scratch, lookup.opened(model.tracking_uri) as client:
        files = {name: Path(scratch) / name for name in ("rows.parquet", "report.json", "report.md")}
        reports.write_table(files["rows.parquet"], judging.table(judged), values)
        files["report.json"].write_text(json.dumps(_as_json(report), indent=1))
        files["report.md"].write_text(reports.markdown(report, of=model.called, on=chosen.name))
        figures = {f"{place}/{name}.png": figure for name, figure in judging.figures(judged).items()}
        facts.write(client, model.run_id, metrics=scores, files={f"{place}/{name}": path for name, path in files.items()}, figures=figures)
        return {
            "artifacts": place,
            "run_url": mlflow_client.run_page(model.tracking_uri, client.get_run(model.run_id).info.experiment_id, model.run_id),
        }


def _result(model: Model, chosen: Chosen, report: Report, written: dict[str, Any] | None) -> dict[str, Any]:
    summary = chosen.dataset.manifest.summary
    return {
        "model": model.version.uri if model.version else model.called,
        "run_id": model.run_id,
        "data": model.run.data.name,
        "split": chosen.split if chosen.rows is None or chosen.rows.cut else None,
        "fingerprint": chosen.dataset.manifest.fingerprint,
        "skipped": summary.skipped,
        **_as_json(report),
        "artifacts": written["artifacts"] if written else None,
        "run_url": written["run_url"] if written else None,
    }


def _as_json(report: Report) -> dict[str, Any]:
    slices = {column: {value: group.as_json() for value, group in groups.items()} for column, groups in report.slices.items()}
    return report.whole.as_json() | {"naive": report.naive, "slices": slices, "drawn_together": report.block} | report.details


def _show(result: dict[str, Any], report: Report, screen: Screen) -> None:
    of = f"the {result['split']} rows of {result['data']}" if result["split"] else result["data"]
    screen.say(f"{result['model']} on {of}: {result['rows']:,} examples")
    for title, (head, *rows) in reports.tables(report):
        screen.table(title, head, rows)
    if report.block > 1:
        screen.say(f"intervals are drawn in blocks of {report.block:,} examples, for neighbours are not independent")
    if result["run_url"]:
        screen.say(f"look     {result['run_url']}   {result['artifacts']}/")


def _slug(label: str) -> str:
    return "-".join(re.findall(r"[a-z0-9_.]+", label.lower()))[:40].strip("-.") or "data"


def _key(name: str) -> str:
    """A metric's name with nothing in it that MLflow refuses (a class may be called anything)."""
    return re.sub(r"[^\w/ .-]", "_", name, flags=re.ASCII)[:150]
