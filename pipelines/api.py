"""The Python API: what the commands do, as functions for notebooks and scripts. `from pipelines import train` gives them.

Each takes the words of its command as Python values and returns a typed result. Errors are those of the command line, as exceptions with
the same texts; the process is never ended, and its signal handlers stay as they are. The same call again resumes what was interrupted, and
so does the command: both name the same run.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from cluster import ray_data
from pipelines.config import load, words_of
from pipelines.data import in_memory
from pipelines.run_record import check_writable
from pipelines.screen import Screen
from pipelines.tracking import lookup
from pipelines.workflows import sweep_and_promote, train_and_promote, words_of_search

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Settings = Mapping[str, Any] | None
"""Settings by dotted key ({"optim.lr": 1e-3}), by group ({"optim": {"lr": 1e-3}}), or both."""
Storage = str | PathLike[str]


@dataclass(frozen=True)
class Result:
    """The result of a command. `where` are its words that say where runs are kept: storage=…, track.uri=…."""

    json: Mapping[str, Any] = field(repr=False)
    where: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, json: Mapping[str, Any], words: Sequence[str]) -> Self:
        """Take the fields out of a command's JSON."""
        where = tuple(word for word in words if word.startswith(("storage=", "track.uri=")))
        named = dict(json)
        if model := json.get("model"):
            named["registered"] = ModelVersion(**model) if isinstance(model, Mapping) else None
        names = [each.name for each in dataclasses.fields(cls) if each.name not in ("json", "where")]
        return cls(json=json, where=where, **{name: named.get(name) for name in names})


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model in MLflow."""

    name: str
    version: int
    uri: str


@dataclass(frozen=True)
class TrainResult(Result):
    """A finished training run."""

    run_id: str
    run_name: str
    status: str
    metrics: Mapping[str, float]
    steps: int
    resumed_from_step: int
    weights_sha256: str
    checkpoint: str
    registered: ModelVersion | None
    """None with track.register=false."""
    samples_per_second: float | None
    workers: int
    seconds: Mapping[str, float]
    run_url: str

    def model(self) -> nn.Module:
        """The network with its weights, in eval mode. Raises StorageError if they are not those that were registered."""
        from pipelines.evaluation import models

        return models.find(self.run_id, self.where).network()

    def predict(self, rows: Any) -> pd.DataFrame:
        """Predictions for each row of a path, a URI or rows in memory, in the rows' order."""
        return _predictions(self.run_id, rows, self.where)


@dataclass(frozen=True)
class SweepResult(Result):
    """A finished search."""

    sweep_id: str
    run_id: str
    status: str
    metric: str
    trials: Sequence[Mapping[str, Any]]
    best: Mapping[str, Any] | None
    confirmed: Mapping[str, Any] | None
    registered: ModelVersion | None
    """The best confirmed model; None without sweep.confirm."""
    seconds: float


@dataclass(frozen=True)
class Evaluation(Result):
    """Scores of a model on a split of its data, or on other data."""

    run_id: str
    rows: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Any]
    naive: Mapping[str, float]
    slices: Mapping[str, Any]


@dataclass(frozen=True)
class WrittenPredictions(Result):
    """Predictions in a file or a folder of parts."""

    rows_in: int
    rows_out: int
    skipped: int
    rows_per_second: float
    output: str
    columns: Sequence[str]


@dataclass(frozen=True)
class Promotion(Result):
    """A decision on a candidate: promoted, refused or rolled back."""

    decision: str
    champion: int | None
    previous: int | None
    reason: str
    rules: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison(Result):
    """Runs side by side."""

    runs: Sequence[Mapping[str, Any]]
    headline: str | None
    differences: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]]
    compare_url: str


Name = str | PathLike[str] | Result
"""A model or run, by its name on the command line or by the result of its training."""


def train(
    recipe: Storage, settings: Settings = None, *, data: Any = None, storage: Storage | None = None, again: bool = False
) -> TrainResult:
    """Train, score and register what a recipe and settings describe: train("cnn", {"optim.lr": 1e-3, "train.epochs": 5}).

    `data` is what data.source would name (a path or URI), or rows in memory: a pandas DataFrame, a datasets.Dataset, a ray.data.Dataset, a
    dict of arrays; or a dict of these by split, {"train": …, "test": …}. `again` trains a finished run anew.
    Raises RecipeError, DataError, StorageError, ClusterError, WorkerFailed, Diverged.
    """
    words = _words(recipe, settings, data, storage)
    gc.collect()  # what is there when a training begins is taken to stay
    return TrainResult.of(train_and_promote(load(fspath(recipe), words), again=again, screen=Screen()), words)


def sweep(
    recipe: Storage,
    settings: Settings = None,
    *,
    space: Mapping[str, str] | None = None,
    trials: int | str | None = None,
    data: Any = None,
    storage: Storage | None = None,
) -> SweepResult:
    """Search settings by trials: sweep("cnn", space={"optim.lr": "loguniform(1e-4, 1e-1)"}, trials=16); trials="+4" adds four.

    `data` is as for `train`. Raises the errors of `train`; a failing trial raises none, unless the first three fail alike.
    """
    search, more = words_of_search(words_of(space or {}), None if trials is None else str(trials))
    words = _words(recipe, settings, data, storage, *search)
    gc.collect()
    return SweepResult.of(sweep_and_promote(fspath(recipe), words, more=more, screen=Screen()), words)


def prepare(recipe: Storage, settings: Settings = None, *, data: Any = None, storage: Storage | None = None) -> dict[str, Any]:
    """Prepare the data only: the JSON of `raylway prepare`."""
    from pipelines.verbs.prepare import prepared

    return prepared(load(fspath(recipe), _words(recipe, settings, data, storage)).run, Screen())


def plan(recipe: Storage, settings: Settings = None, *, data: Any = None, storage: Storage | None = None) -> dict[str, Any]:
    """Show what would run, and the "problems" that would stop it: the JSON of `raylway plan`."""
    from pipelines.verbs.plan import plan

    return plan(load(fspath(recipe), _words(recipe, settings, data, storage)), Screen())


def verify(
    what: Literal["resume", "parity"],
    recipe: Storage,
    settings: Settings = None,
    *,
    steps: int = 20,
    data: Any = None,
    storage: Storage | None = None,
) -> dict[str, Any]:
    """Verify that a training resumes bit for bit, or follows the same curve on several workers: the JSON of `raylway verify`."""
    from pipelines.verbs.verify import verify

    return verify(what, load(fspath(recipe), _words(recipe, settings, data, storage)), steps=steps, screen=Screen())


def reproduce(run: Name, settings: Settings = None, *, steps: int | None = None, storage: Storage | None = None) -> dict[str, Any]:
    """Train a run again and compare every number, bit for bit: the JSON of `raylway reproduce`."""
    from pipelines.verbs.reproduce import reproduce

    name, words = _name_and_words(run, settings, storage)
    return reproduce(name, words, steps=steps, screen=Screen())


def evaluate(
    model: Name,
    settings: Settings = None,
    *,
    data: Any = None,
    slices: Sequence[str] = (),
    split: str | None = None,
    storage: Storage | None = None,
) -> Evaluation:
    """Score a model on its test rows, or on `data` (as for `train`): metrics with intervals, also of each value of the columns `slices`.

    `model`: models:/name@alias, models:/name/3, a run's id, name or folder, "latest", or the result of `train`.
    """
    from pipelines.verbs.evaluate import evaluate

    name, words = _name_and_words(model, settings, storage)
    words += [] if data is None else _sources(data, lookup.place(words)[1])
    return Evaluation.of(evaluate(name, words, columns=slices, split=split, screen=Screen()), words)


@overload
def predict(model: Name, rows: Any, output: None = None, settings: Settings = None, *, storage: Storage | None = None) -> pd.DataFrame: ...
@overload
def predict(
    model: Name, rows: Storage, output: Storage, settings: Settings = None, *, storage: Storage | None = None, again: bool = False
) -> WrittenPredictions: ...
def predict(
    model: Name, rows: Any, output: Storage | None = None, settings: Settings = None, *, storage: Storage | None = None, again: bool = False
) -> pd.DataFrame | WrittenPredictions:
    """Predict each row of a path, a URI or rows in memory (as `data` of `train`; labels are not needed): a DataFrame, in the rows' order.

    With `output`, a file or a folder of parts, the rows at the path `rows` are predicted and written as by the command: the same call
    resumes an interrupted prediction, and `again` replaces an earlier output.
    """
    name, words = _name_and_words(model, settings, storage)
    if output is None:
        return _predictions(name, rows, words)
    from pipelines.verbs.predict import predict

    return WrittenPredictions.of(predict(name, fspath(rows), fspath(output), words, again=again, screen=Screen()), words)


def promote(
    model: Name,
    settings: Settings = None,
    *,
    rollback: bool = False,
    force: bool = False,
    reason: str | None = None,
    storage: Storage | None = None,
) -> Promotion:
    """Make a candidate champion if it keeps its recipe's rules and beats the champion on the same test rows; a refusal is no error.

    `rollback` restores the previous champion; `force` promotes although the rules refuse, for a `reason`.
    """
    from pipelines.verbs import promote

    name, words = _name_and_words(model, settings, storage)
    if rollback:
        return Promotion.of(promote.roll_back(name, words, reason=reason, screen=Screen()), words)
    return Promotion.of(promote.promote(name, words, force=force, reason=reason, screen=Screen()), words)


def compare(*runs: Name, experiment: str | None = None, sweep: str | None = None, storage: Storage | None = None) -> Comparison:
    """Compare runs, or the best of an experiment or sweep: settings that differ, scores, and whether they differ significantly."""
    from pipelines.verbs.compare import compare

    given = [_name_and_words(run, None, storage) for run in runs] or [("", _settings(None, storage))]
    names, words = [name for name, _ in given if name], given[0][1]
    return Comparison.of(compare(names, words, experiment=experiment, sweep=sweep, screen=Screen()), words)


class _Warnings(Screen):
    """Shows progress and warnings, but not where the temporary output lies."""

    def say(self, text: str) -> None:
        if text.startswith("warning: "):
            super().say(text)


def _predictions(model: str, rows: Any, words: Sequence[str]) -> pd.DataFrame:
    """Predictions of a model for each row, in the rows' order: what `raylway predict` writes."""
    import pandas as pd

    from pipelines.verbs.predict import predict

    root = lookup.place(words)[1]
    check_writable(root)
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=root) as scratch:  # where every node of a cluster reaches it
        source = next(iter(in_memory.sources_of(rows, Path(scratch), ray_data.in_order).values()))
        output = f"{scratch}/predictions.parquet"
        predict(model, source, output, words, screen=_Warnings())
        return pd.read_parquet(output)


def _words(recipe: Storage, settings: Settings, data: Any, storage: Storage | None, *more: str) -> list[str]:
    """Settings as the words of a command line; `data` is written below the storage if it is in memory."""
    words = [*_settings(settings, storage), *more]
    if data is None:
        return words
    run = load(fspath(recipe), [*words, "data.source=data"]).run  # a wrong setting raises before anything is written
    return [*words, *_sources(data, run.root)]


def _name_and_words(named: Name, settings: Settings, storage: Storage | None) -> tuple[str, list[str]]:
    """(name, settings as words) of a model or run; a result brings the words that say where it is kept."""
    if isinstance(named, Result):
        return named.json["run_id"], [*named.where, *_settings(settings, storage)]
    return fspath(named), _settings(settings, storage)


def _settings(settings: Settings, storage: Storage | None) -> list[str]:
    return words_of({**(settings or {}), **({} if storage is None else {"storage": storage})})


def _sources(data: Any, root: Path) -> list[str]:
    """Settings that name `data`, as words."""
    check_writable(root)
    return words_of(in_memory.sources_of(data, root / "datasets" / "given", ray_data.in_order))
