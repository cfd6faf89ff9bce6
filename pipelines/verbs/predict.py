"""Predict: ask a trained model about any number of rows, in parts, on all cores or GPUs; what was killed goes on where it was.

The first rows are answered here, before anything is started: they say whether the data are what the model can be asked, what type each
column has, and how long a row takes, by which the rest is cut into pieces of about a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster import ray_data, session
from cluster.session import Session
from pipelines.data.encode import Piece
from pipelines.data.source import Skipped
from pipelines.data.store import store_of
from pipelines.errors import RecipeError, StorageError, shown
from pipelines.evaluation import models
from pipelines.evaluation.formats import Format
from pipelines.evaluation.models import Model
from pipelines.evaluation.predict_job import Job, job_of
from pipelines.evaluation.row_source import Asked, open_input
from pipelines.evaluation.writer import Output, check_apart, output_of
from pipelines.run_record import check_writable
from pipelines.screen import Screen
from pipelines.tracking import registry
from pipelines.worker_range import WorkerRange
from workloads import served
from workloads.base import DataError

_SHORTEST_SECONDS, _PIECE_SECONDS, _HERE_SECONDS = 0.1, 1.0, 5.0
_PIECES_A_CORE = 4
_LEAST_ROWS, _MOST_ROWS, _MOST_PIECES = 64, 1 << 16, 4096
_WORKERS = "scale.workers="
_OTHERS = {"model": "another model", "code": "other code of workloads/", "source": "other data"}


class Work(NamedTuple):
    """What is to be done, and by how many."""

    job: Job
    pieces: Sequence[Piece]
    rate: float
    """Rows that one thread answers in a second."""
    workers: int | None
    """Processes on Ray, 0 for none, or None: as many as there are cores, where the work is worth starting them."""


def predict(
    called: str,
    source: str,
    target: str,
    overrides: Sequence[str] = (),
    *,
    form: Format | None = None,
    again: bool = False,
    screen: Screen,
) -> dict[str, Any]:
    """Answer every row of `source` and keep the answers in `target`; the result of DESIGN §7. Raises the errors of pipelines.errors."""
    began = time.monotonic()
    for key in ("data.source", "data.train", "data.validation", "data.test"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise RecipeError(f"{key}: what is read is INPUT, the command's second word")
    model = models.find(called, ["scale={workers: 1}", *overrides])  # how it was trained says nothing of how it is to answer
    if model.run.data.on_bad_row == "skip" and not model.workload.skippable:
        raise RecipeError("data.on_bad_row=skip: rows of a series follow one another in time, so none can be left out; fill the gaps")
    for warning in model.warnings:
        screen.say(f"warning: {warning}")
    check_writable(model.run.root)
    output = output_of(target, form, store_of(model.run).cache)
    check_apart(output, source)
    asked = open_input(model, source)
    identity = _identity(model, asked, output)
    with output.locked() as notes:
        before = output.begun()
        if again and before is not None:
            output.clear()
            before = None
        if before is not None and (result := _finished(output, before, identity, screen)):
            return result
        job, rate = job_of(model, asked, output, screen.say)
        if before is None:
            before = identity | {"pieces": asked.pieces(_piece_rows(rate, asked.source.rows()))}
            output.begin(before)
        stated = [WorkerRange.read(text.removeprefix(_WORKERS)).most for text in overrides if text.startswith(_WORKERS)]
        work = Work(job, [Piece(*piece) for piece in before["pieces"]], rate, stated[-1] if stated else None)
        parts = f"{len(work.pieces):,} part{'s' * (len(work.pieces) > 1)}"
        screen.say(f"{model.called} ({model.workload.task}) on {shown(source)}: {asked.source.rows():,} rows in {parts}")
        return _conclude(work, *_answered(work, notes, screen), began=began, screen=screen)


def _identity(model: Model, asked: Asked, output: Output) -> dict[str, Any]:
    """What decides the answers, as JSON values: parts of one job can stand beside each other."""
    return {
        "model": served.describe(model.workload, model.encoding, model.weights_sha256),
        "code": registry.code_version(),
        "source": asked.source.identity(),
        "columns": [list(asked.columns), dict(asked.kept)],
        "format": output.form,
        "skip": model.run.data.on_bad_row == "skip",
    }


def _finished(output: Output, before: Mapping[str, Any], identity: Mapping[str, Any], screen: Screen) -> dict[str, Any] | None:
    """The result of the same job, if it was finished. Raises StorageError if it was another."""
    if other := [name for name, value in identity.items() if before.get(name) != value]:
        what = _OTHERS.get(other[0], "other settings")
        raise StorageError(f"{output.name}: holds answers of {what}; name another place, or give --again to replace them")
    if result := output.result():
        screen.say(f"{output.name} is finished already; --again makes it anew")
        _show(result, screen)
    return result


def _piece_rows(rate: float, rows: int) -> int:
    """A power of two that takes about a second, so that little is lost with a killed process; less where cores would have no piece."""
    for_all = rows / (_PIECES_A_CORE * session.local_resources().cpus)
    wanted = min(max(for_all, _SHORTEST_SECONDS * rate), _PIECE_SECONDS * rate)
    return max(2 ** int(np.log2(min(max(wanted, _LEAST_ROWS), _MOST_ROWS))), rows // _MOST_PIECES)


def _answered(work: Work, notes: Path, screen: Screen) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """The cards of pieces done before, those of the others, and the seconds that these took."""
    output = work.job.output
    standing = output.standing()
    waiting = [piece for piece in work.pieces if piece.number not in standing]
    if standing:
        screen.say(f"going on: {len(standing):,} of {len(work.pieces):,} parts are done")
    seconds = sum(piece.stop - piece.start for piece in waiting) / work.rate
    few = work.workers is None and (len(waiting) < 2 or seconds < _HERE_SECONDS)  # done before Ray would have started
    if few or work.workers == 0:
        job, began = _threaded(work.job, session.local_resources().cpus), time.monotonic()
        with screen.counted("parts", len(work.pieces), output.counted):
            return list(standing.values()), [job(piece) for piece in waiting], time.monotonic() - began
    log = notes / ".ray.log"
    with screen.captured(log), session.connect() as connected, screen.counted("parts", len(work.pieces), output.counted):
        connected.ready()
        began = time.monotonic()
        done = _on_ray(work, waiting, connected)
        seconds = time.monotonic() - began
    log.unlink()
    return list(standing.values()), done, seconds


def _on_ray(work: Work, waiting: Sequence[Piece], connected: Session) -> list[dict[str, Any]]:
    there, stated = connected.resources(), work.job.answerer.model.run.scale.gpus
    gpus = min(1.0, there.gpus) if stated is None else stated
    most = work.workers or (int(there.gpus / gpus) if gpus else min(there.cpus, len(waiting)) if connected.local else None)
    return ray_data.each(_threaded(work.job, max(1, there.cpus // (most or there.cpus))), waiting, most=most, gpus=gpus)


def _threaded(job: Job, threads: int) -> Job:
    answerer = job.answerer
    return replace(job, answerer=replace(answerer, threads=answerer.model.run.scale.threads or threads))


def _conclude(
    work: Work,
    before: Sequence[dict[str, Any]],
    now: Sequence[dict[str, Any]],
    seconds: float,
    *,
    began: float,
    screen: Screen,
) -> dict[str, Any]:
    """Count, refuse what has too many bad rows, join, and tell. Raises DataError."""
    model, source, output = work.job.answerer.model, work.job.answerer.asked.source, work.job.output
    cards = sorted([*before, *now], key=lambda card: card["number"])
    left = sum((Skipped(card["skipped"], tuple(card["examples"])) for card in cards), source.skipped())
    answered = sum(card["rows"] for card in cards)
    allowed = model.run.data.max_bad_fraction
    if left.count > allowed * (answered + left.count):
        raise DataError(
            f"{source.label}: {left.count:,} of {answered + left.count:,} rows cannot be used, more than "
            f"data.max_bad_fraction={allowed:g} allows; the first of them:\n" + "\n".join(left.examples)
        )
    result = {
        "rows_in": answered + left.count,
        "rows_out": answered,
        "skipped": left.count,
        "rows_per_second": sum(card["rows"] + card["skipped"] for card in now) / seconds if now else 0.0,
        "output": output.name,
        "columns": work.job.schema.names,
        "parts": len(cards),
        "parts_done_before": len(before),
        "skipped_examples": list(left.examples),
        "model": model.called,
        "seconds": {"predict": seconds},
    }
    output.finish([card["number"] for card in cards], work.job.schema, result)
    result["seconds"]["total"] = time.monotonic() - began
    _show(result, screen)
    return result


def _show(result: Mapping[str, Any], screen: Screen) -> None:
    if result["skipped"]:
        screen.say(
            f"{result['rows_in']:,} rows read = {result['rows_out']:,} answered + {result['skipped']:,} skipped; the first of these:"
        )
        for example in result["skipped_examples"]:
            screen.say(f"  {example}")
    screen.say(
        f"{result['rows_out']:,} rows, {result['rows_per_second']:,.0f} rows/s; columns: {', '.join(result['columns'])}\n"
        f"output   {result['output']}"
    )
