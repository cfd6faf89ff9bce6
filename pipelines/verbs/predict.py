"""Predict: run a trained model over any number of rows, in parts, on all cores or GPUs; a killed command goes on where it was.

The first rows are predicted here, before anything is started: they show that the model can use the data, what type each column has, and
how long a row takes, by which the rest is cut into pieces of about a second.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster import ray_data, session
from cluster.capacity import WorkerRange
from pipelines.data.encode import Piece
from pipelines.data.files import shown
from pipelines.data.source import Skipped
from pipelines.data.store import store_of
from pipelines.errors import RecipeError, StorageError
from pipelines.evaluation import models
from pipelines.evaluation.output import Format, Output, check_apart, output_of
from pipelines.evaluation.predictions import Job, Predictor, job_of, predictor_of
from pipelines.run_record import check_writable
from pipelines.screen import Screen
from pipelines.tracking import registry
from workloads import served
from workloads.base import DataError

_SHORTEST_SECONDS, _PIECE_SECONDS, _HERE_SECONDS = 0.1, 1.0, 5.0
_PIECES_A_CORE = 4
_LEAST_ROWS, _MOST_ROWS, _MOST_PIECES = 64, 1 << 16, 4096
_WORKERS = "scale.workers="
_OTHERS = {"model": "another model", "code": "other code of workloads/", "source": "other data"}


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
    """Predict every row of `source` into `target`. The result is JSON (DESIGN §7). Raises the errors of pipelines.errors."""
    began = time.monotonic()
    for key in ("data.source", "data.train", "data.validation", "data.test"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise RecipeError(f"{key}: what is read is INPUT, the command's second word")
    model = models.find(called, ["scale={workers: 1}", *overrides])  # the workers of its training say nothing of those here
    if model.run.data.on_bad_row == "skip" and not model.workload.skippable:
        raise RecipeError("data.on_bad_row=skip: rows of a series follow one another in time, so none can be left out; fill the gaps")
    for warning in model.warnings:
        screen.say(f"warning: {warning}")
    check_writable(model.run.root)
    output = output_of(target, form, store_of(model.run.data, model.run.root).cache)
    check_apart(output, source)
    predictor = predictor_of(model, source)
    identity = _identity(predictor, output)
    with output.locked() as logs:
        if again:
            output.clear()
        begun = output.begun()
        if begun is not None and (result := _finished(output, begun, identity, screen)):
            return result
        job, rate = job_of(predictor, output, screen.say)
        rows = predictor.source.rows()
        if begun is None:
            begun = identity | {"pieces": predictor.pieces(_piece_rows(rate, rows))}
            output.begin(begun)
        pieces = [Piece(*piece) for piece in begun["pieces"]]
        parts = f"{len(pieces):,} part{'s' * (len(pieces) > 1)}"
        screen.say(f"{model.called} ({model.workload.task}) on {shown(source)}: {rows:,} rows in {parts}")
        stated = [WorkerRange.read(text.removeprefix(_WORKERS)).most for text in overrides if text.startswith(_WORKERS)]
        before = output.cards()
        if before:
            screen.say(f"going on: {len(before):,} of {len(pieces):,} parts are done")
        now, seconds = _predicted(job, pieces, before, rate, stated[-1] if stated else None, logs, screen)
        return _finish(job, before, now, seconds, began=began, screen=screen)


def _identity(predictor: Predictor, output: Output) -> dict[str, Any]:
    """Everything that decides the predictions, as JSON values: parts of one job can stand beside each other."""
    model = predictor.model
    return {
        "model": served.describe(model.workload, model.encoding, model.weights_sha256),
        "code": registry.code_version(),
        "source": predictor.source.identity(),
        "columns": [list(predictor.columns), dict(predictor.kept)],
        "format": output.form,
        "skip": predictor.skip,
    }


def _finished(output: Output, begun: Mapping[str, Any], identity: Mapping[str, Any], screen: Screen) -> dict[str, Any] | None:
    """The result of the same job, if it was finished. Raises StorageError if it was another."""
    if other := [name for name, value in identity.items() if begun.get(name) != value]:
        what = _OTHERS.get(other[0], "other settings")
        raise StorageError(f"{output.name}: holds predictions of {what}; name another place, or give --again to replace them")
    if result := output.result():
        screen.say(f"{output.name} is finished already; --again makes it anew")
        _show(result, screen)
    return result


def _piece_rows(rate: float, rows: int) -> int:
    """A power of two that takes about a second, so that little is lost with a killed process; less where cores would have no piece."""
    for_all = rows / (_PIECES_A_CORE * session.local_resources().cpus)
    wanted = min(max(for_all, _SHORTEST_SECONDS * rate), _PIECE_SECONDS * rate)
    return max(2 ** int(np.log2(min(max(wanted, _LEAST_ROWS), _MOST_ROWS))), rows // _MOST_PIECES)


def _predicted(
    job: Job, pieces: Sequence[Piece], done: Collection[int], rate: float, workers: int | None, logs: Path, screen: Screen
) -> tuple[list[dict[str, Any]], float]:
    """The cards of the pieces that are not `done`, and the seconds that they took. `rate`: rows that one thread predicts in a second.

    `workers`: processes on Ray, 0 for none, or None: as many as there are cores, where the work is worth starting them.
    """
    waiting = [piece for piece in pieces if piece.number not in done]
    seconds = sum(piece.stop - piece.start for piece in waiting) / rate
    few = workers is None and (len(waiting) < 2 or seconds < _HERE_SECONDS)  # done before Ray would have started
    if few or workers == 0:
        job, began = _threaded(job, session.local_resources().cpus), time.monotonic()
        with screen.counted("parts", len(pieces), job.output.counted):
            return [job(piece) for piece in waiting], time.monotonic() - began
    log = logs / ".ray.log"
    with screen.captured(log), session.connect() as connected, screen.counted("parts", len(pieces), job.output.counted):
        connected.ready()
        began = time.monotonic()
        resources, gpus = connected.resources(), job.predictor.model.run.scale.gpus
        gpus = min(1.0, resources.gpus) if gpus is None else gpus
        most = workers or (int(resources.gpus / gpus) if gpus else min(resources.cpus, len(waiting)) if connected.local else None)
        threads = max(1, resources.cpus // (most or resources.cpus))
        cards = ray_data.each(_threaded(job, threads), waiting, most=most, gpus=gpus)
        seconds = time.monotonic() - began
    log.unlink()
    return cards, seconds


def _threaded(job: Job, threads: int) -> Job:
    predictor = job.predictor
    return replace(job, predictor=replace(predictor, threads=predictor.model.run.scale.threads or threads))


def _finish(
    job: Job, before: Mapping[int, dict[str, Any]], now: Sequence[dict[str, Any]], seconds: float, *, began: float, screen: Screen
) -> dict[str, Any]:
    """Count the rows, refuse too many bad ones, join the parts; the result. Raises DataError."""
    model, source, output = job.predictor.model, job.predictor.source, job.output
    cards = sorted([*before.values(), *now], key=lambda card: card["number"])
    left = sum((Skipped(card["skipped"], tuple(card["examples"])) for card in cards), source.skipped())
    predicted = sum(card["rows"] for card in cards)
    allowed = model.run.data.max_bad_fraction
    if left.count > allowed * (predicted + left.count):
        raise DataError(
            f"{source.label}: {left.count:,} of {predicted + left.count:,} rows cannot be used, more than "
            f"data.max_bad_fraction={allowed:g} allows; the first of them:\n" + "\n".join(left.examples)
        )
    result = {
        "rows_in": predicted + left.count,
        "rows_out": predicted,
        "skipped": left.count,
        "rows_per_second": sum(card["rows"] + card["skipped"] for card in now) / seconds if now else 0.0,
        "output": output.name,
        "columns": job.schema.names,
        "parts": len(cards),
        "parts_done_before": len(before),
        "skipped_examples": list(left.examples),
        "model": model.called,
        "seconds": {"predict": seconds},
    }
    output.finish([card["number"] for card in cards], job.schema, result)
    result["seconds"]["total"] = time.monotonic() - began
    _show(result, screen)
    return result


def _show(result: Mapping[str, Any], screen: Screen) -> None:
    if result["skipped"]:
        screen.say(
            f"{result['rows_in']:,} rows read = {result['rows_out']:,} predicted + {result['skipped']:,} skipped; the first of these:"
        )
        for example in result["skipped_examples"]:
            screen.say(f"  {example}")
    screen.say(
        f"{result['rows_out']:,} rows, {result['rows_per_second']:,.0f} rows/s; columns: {', '.join(result['columns'])}\n"
        f"output   {result['output']}"
    )
