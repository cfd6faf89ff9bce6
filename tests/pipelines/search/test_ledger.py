"""The ledger is what is known of a sweep: read again, it says what was written, whatever a crash left of its last line."""

from __future__ import annotations

import json
import math

import pytest

from pipelines.search.ledger import Ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def written(path):
    ledger = Ledger(path)
    ledger.aim(4)
    first = ledger.begin({"optim.lr": 0.1})
    ledger.validated(first.number, 1, {"val/accuracy": 0.5, "val/loss": math.inf})
    ledger.validated(first.number, 2, {"val/accuracy": 0.75, "val/loss": math.nan})
    ledger.end(first.number, "finished", seconds=1.5, outcome={"metrics": {"loss": 0.25}, "weights_sha256": "ab"})
    ledger.tracked(first.number, "run-0")
    second = ledger.begin({"optim.lr": 0.2}, "confirm")
    ledger.change(second.number, {"optim.lr": 0.3}, first.number)
    ledger.close()
    return ledger


def test_what_is_read_again_is_what_was_written(path):
    before = written(path)
    again = Ledger(path)
    assert again.target == 4
    assert repr(again.trials) == repr(before.trials)
    first, second = again.trials.values()
    assert (first.status, first.seconds, first.metrics, first.run_id, first.outcome) == (
        "finished",
        1.5,
        {"loss": 0.25},
        "run-0",
        {"weights_sha256": "ab"},
    )
    assert first.value("val/accuracy") == 0.75
    assert math.isinf(first.validations[1]["val/loss"])
    assert math.isnan(first.validations[2]["val/loss"])
    assert (second.status, second.role, second.initial, second.params) == ("running", "confirm", {"optim.lr": 0.2}, {"optim.lr": 0.3})


def test_a_line_torn_by_a_crash_is_cut_off_and_the_next_is_whole(path):
    written(path)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 20):
        path.write_bytes(whole[:cut])
        ledger = Ledger(path)
        ledger.end(1, "failed", seconds=0, outcome={}, cause="torn", code=14)
        ledger.close()
        assert Ledger(path).trials[1].cause == "torn"


def test_a_trial_that_failed_has_no_value_and_one_that_is_begun_again_is_running(path):
    ledger = Ledger(path)
    trial = ledger.begin({})
    ledger.validated(0, 1, {"val/accuracy": 0.5})
    ledger.end(0, "failed", seconds=1, outcome={}, cause="its process died", code=12)
    assert trial.value("val/accuracy") is None
    ledger.reopen(0)
    assert (trial.status, trial.cause, trial.value("val/accuracy")) == ("running", "", 0.5)


def test_what_was_sent_of_a_trial_before_it_ended_is_not_all(path):
    ledger = Ledger(path)
    ledger.begin({})
    ledger.tracked(0, "interrupted")
    ledger.end(0, "finished", seconds=1, outcome={})
    assert ledger.trials[0].run_id == ""


def test_the_lines_of_an_earlier_version_are_understood(path):
    lines = [
        {"event": "target", "trials": 3},
        {"event": "begun", "trial": 0, "params": {"optim.lr": 0.1}, "role": "search"},
        {"event": "look", "trial": 0, "look": 1, "scores": {"val/accuracy": 0.5, "val/loss": "inf"}},
        {"event": "ended", "trial": 0, "status": "finished", "seconds": 1.5, "metrics": {"loss": 0.25}}
        | {"told": {"weights_sha256": "ab"}, "cause": "", "code": 0},
        {"event": "tracked", "trial": 0, "run_id": "run-0"},
        {"event": "begun", "trial": 1, "params": {"optim.lr": 0.2}, "role": "confirm"},
        {"event": "changed", "trial": 1, "params": {"optim.lr": 0.3}, "donor": 0},
        {"event": "ended", "trial": 1, "status": "failed", "seconds": 0, "metrics": {}, "told": {}, "cause": "lost", "code": 12},
        {"event": "reopened", "trial": 1},
    ]
    path.write_text("".join(json.dumps(line | {"time": 1.0}) + "\n" for line in lines))
    ledger = Ledger(path)
    first, second = ledger.trials.values()
    assert ledger.target == 3
    assert (first.status, first.value("val/accuracy"), first.outcome, first.run_id) == ("finished", 0.5, {"weights_sha256": "ab"}, "run-0")
    assert (second.status, second.role, second.initial, second.params) == ("running", "confirm", {"optim.lr": 0.2}, {"optim.lr": 0.3})
