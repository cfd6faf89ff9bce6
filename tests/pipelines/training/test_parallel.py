"""Workers in real processes, joined by gloo: however many there are, they train one and the same model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipelines.data.dataset import Dataset
from tests import runs
from tests.teams import GATHERED, RESUMED_FROM, STEPS, TeamRun

TeamRuns = Callable[[str, int], TeamRun]


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_follow_the_curve_of_one(team_run: TeamRuns, workers: int) -> None:
    alone, team = runs.losses(team_run("cnn", 1).whole), runs.losses(team_run("cnn", workers).whole)
    assert len(alone) == STEPS
    assert team == pytest.approx(alone, abs=1e-5)


def test_the_workers_do_learn_on_the_way(team_run: TeamRuns) -> None:
    curve = runs.losses(team_run("cnn", 2).whole)
    assert curve[-1] < curve[0] - 0.1


@pytest.mark.parametrize("workers", [2, 3])
def test_each_test_row_is_scored_once_however_many_workers(team_run: TeamRuns, workers: int) -> None:
    one, team = team_run("cnn", 1).outcome, team_run("cnn", workers).outcome
    rows = len(one.outputs["probabilities"])
    assert rows % 3  # else a row too many could not show
    assert team.metrics["test/accuracy"] == one.metrics["test/accuracy"]
    assert team.metrics["test/loss"] == pytest.approx(one.metrics["test/loss"], abs=1e-5)
    np.testing.assert_allclose(team.outputs["probabilities"], one.outputs["probabilities"], atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_scores_are_those_of_the_gathered_outputs(team_run: TeamRuns, workers: int) -> None:
    run = team_run("cnn", workers)
    outcome, test = run.outcome, Dataset.open(run.dataset).test
    labels = test.take(np.arange(len(test)))["label"]
    said = outcome.outputs["probabilities"]
    assert outcome.metrics["test/accuracy"] == pytest.approx(float((said.argmax(1) == labels).mean()), abs=1e-12)
    assert outcome.metrics["test/loss"] == pytest.approx(float(-np.log(said[np.arange(len(said)), labels]).mean()), abs=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_resumed_team_ends_with_the_bits_of_an_undisturbed_one(team_run: TeamRuns, workers: int) -> None:
    run = team_run("cnn", workers)
    assert run.resumed_outcome.resumed_from_step == RESUMED_FROM
    assert runs.final_files(run.resumed, STEPS) == runs.final_files(run.whole, STEPS)
    assert run.resumed_outcome.weights_sha256 == run.outcome.weights_sha256


@pytest.mark.parametrize("workers", [2, 3])
def test_a_resumed_team_adds_no_second_point_to_its_curve(team_run: TeamRuns, workers: int) -> None:
    run = team_run("cnn", workers)
    assert (run.resumed / "journal.jsonl").read_bytes() == (run.whole / "journal.jsonl").read_bytes()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_strided_rows_are_gathered_in_order_on_every_worker(team_run: TeamRuns, workers: int) -> None:
    expected = torch.arange(GATHERED).unsqueeze(1) * torch.tensor([[1, 10]])
    assert all(torch.equal(gathered, expected) for gathered in team_run("cnn", workers).gathered)
