"""What a run keeps of each test row gives, summed up, the scores that training gave."""

from __future__ import annotations

import pytest

from pipelines.evaluation import row_scores
from pipelines.tracking import facts, lookup
from tests.trained import storage_with, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory, empty_database):
    return storage_with(tmp_path_factory.mktemp("scored"), empty_database)


@pytest.mark.parametrize(("recipe", "together"), [("cnn", False), ("lstm", True), ("gpt", True), ("lstm_text", False)])
def test_a_finished_run_keeps_the_scores_of_each_test_row(place, tmp_path, recipe, together):
    result = trained(place, recipe=recipe)
    with lookup.opened(f"sqlite:///{place}/mlflow.db") as client:
        kept = row_scores.read(facts.artifact(client, result["run_id"], row_scores.ARTIFACT, tmp_path))
    tested = {name.removeprefix("test/"): value for name, value in result["metrics"].items() if name.startswith("test/")}
    common = set(tested) & set(kept.scores)
    assert common
    for name in common:
        assert kept.scores[name].value == pytest.approx(tested[name], rel=1e-4), name
    assert (kept.span > 1) == together
    assert len(kept) > 1
