"""A champion and a candidate on the candidate's test rows: what each says of them, and whether the difference is more than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines import newdata
from pipelines.data.dataset import Dataset
from pipelines.data.preparation import Each
from pipelines.errors import StorageError
from pipelines.evaluation import models, rules, split_scores, statistics
from pipelines.evaluation.models import Model
from pipelines.evaluation.rules import Rule
from pipelines.evaluation.statistics import Difference
from workloads.base import DataError
from workloads.judging import Judged, Judging

SPLIT = "test"


def against(model: Model, judging: Judging, judged: Judged, dataset: Dataset, champion: int, each: Each) -> tuple[Rule, tuple[str, ...]]:
    """The champion's answers to the same rows, compared with the candidate's."""
    assert model.version
    metric = model.run.promote.metric or model.workload.headline.metric
    rival = f"models:/{model.version.name}/{champion}"
    name, wanted = f"{metric} against {rival}", "better" if not model.run.promote.margin else f"not worse by {model.run.promote.margin:g}"
    where = [f"storage={model.run.storage}", f"track.uri={model.tracking_uri}"]
    try:
        other = models.find(rival, where)
        if other.workload.task != model.workload.task:
            return rules.failed(name, wanted, f"it is a model of {other.workload.task}, this one of {model.workload.task}"), ()
        theirs = _on_the_same_rows(model, other, dataset, each)
        theirs = judging.translated(theirs, other.workload.judging(other.encoding))
        if len(theirs) != len(judged) or not np.allclose(theirs.columns["truth"], judged.columns["truth"], rtol=1e-3, atol=1e-3):
            return rules.failed(name, wanted, "it cannot be given the same test rows, so the two cannot be compared"), ()
        difference = _difference(judging, judged, theirs, metric)
    except (ValueError, DataError, StorageError) as error:
        return rules.failed(name, wanted, str(error)), ()
    other_data = f"{rival} was trained on other data ({other.fingerprint}); some of these test rows may have been among them"
    warnings = (*other.warnings, *([other_data] if other.fingerprint != model.fingerprint else []))
    return rules.against(model.run.promote, metric, model.workload.better, difference, rival=rival), warnings


def _on_the_same_rows(model: Model, other: Model, dataset: Dataset, each: Each) -> Judged:
    """Another model's answers to the candidate's test rows: as they are prepared, or encoded anew as the other was taught."""
    if other.encoding == model.encoding and other.workload.task_settings() == model.workload.task_settings():
        return split_scores.judged(replace(other, run=model.run), dataset, SPLIT, each)
    taught = replace(other, run=other.run.model_copy(update={"data": model.run.data, "scale": model.run.scale}))
    rows = newdata.rows_of(taught, split=SPLIT)
    return split_scores.judged(taught, newdata.encoded(taught, rows, each), rows.split, each)


def _difference(judging: Judging, ours: Judged, theirs: Judged, metric: str) -> Difference:
    block = statistics.block_of(len(ours), judging.span)
    score = judging.derived.get(metric, (metric, None))[0]
    if score == "accuracy" and block == 1 and (ours.scores[score].count == 1).all():
        return statistics.mcnemar(ours.scores[score].total > 0, theirs.scores[score].total > 0)
    if score in ours.scores:
        return statistics.paired(ours.scores[score], theirs.scores[score], block=block)
    return statistics.apart(
        lambda index: judging.others(ours.take(index))[score] - judging.others(theirs.take(index))[score], len(ours), block=block
    )
