"""What an operator watches, read from the folders of small real runs."""

from __future__ import annotations

import json
import os
import time

import pytest

from pipelines import metrics_export
from pipelines.run_record import RunFolder, backlog
from pipelines.tracking.journal import Journal
from tests import runs

SHORT = ("train.steps=40", "train.checkpoint_every=20", "train.log_every=5", "train.batch=64")


@pytest.fixture(scope="module")
def trained(storage, tmp_path_factory):
    """A run of 40 steps: its job."""
    job = runs.job(storage, tmp_path_factory.mktemp("watched"), *SHORT)
    runs.alone(job)
    return job


def read(job_or_gauges):
    source = (
        job_or_gauges
        if isinstance(job_or_gauges, metrics_export.Gauges)
        else metrics_export.Gauges(job_or_gauges.run, job_or_gauges.folder)
    )
    return {(sample.metric.name, *sample.tags.values()): sample.value for sample in source.read()}


def test_the_numbers_of_a_run_are_those_of_its_journal(trained):
    found = read(trained)
    points = [json.loads(line)["metrics"] for line in trained.folder.journal.read_text().splitlines()]
    last = [point["perf/samples_per_second"] for point in points if "perf/samples_per_second" in point][-1]
    assert found["raylway_step",] == 40
    assert found["raylway_samples_per_second",] == last
    assert found["raylway_step_seconds",] == pytest.approx(64 / last)
    assert found["raylway_checkpoint_interval_seconds",] == pytest.approx(20 * 64 / last)
    assert 0 <= found["raylway_data_wait_ratio",] < 1
    assert 0 < found["raylway_checkpoint_seconds",] < 60


def test_every_checkpoint_says_how_long_it_took(trained):
    entries = [json.loads(line) for line in trained.folder.journal.read_text().splitlines()]
    assert [entry["step"] for entry in entries if "perf/checkpoint_seconds" in entry["metrics"]] == [20, 40]


def test_a_checkpoint_ages_from_its_sealing_and_no_longer_than_the_command(trained):
    watched = metrics_export.Gauges(trained.run, trained.folder)
    for manifest in trained.folder.checkpoints.glob("*/MANIFEST.json"):
        os.utime(manifest, (0, 0))
    assert read(watched)["raylway_checkpoint_age_seconds",] < 60
    newest = max(trained.folder.checkpoints.glob("*/MANIFEST.json"))
    os.utime(newest, (time.time() + 10, time.time() + 10))
    assert read(watched)["raylway_checkpoint_age_seconds",] == 0


def test_a_run_that_has_not_begun_has_no_speed(trained, tmp_path):
    found = read(metrics_export.Gauges(trained.run, RunFolder(tmp_path)))
    assert {name for name, *_ in found} == {
        *("raylway_step", "raylway_checkpoint_age_seconds", "raylway_journal_backlog_bytes", "raylway_journal_backlog_seconds")
    }


def test_a_restart_is_counted_once_with_its_cause(trained):
    watched = metrics_export.Gauges(trained.run, trained.folder)
    watched.restarted("worker")
    watched.restarted("worker")
    found = read(watched)
    assert found["raylway_restarts", "worker"] == 2
    assert found["raylway_restarts", "command"] == 1, "checkpoints were there when the command began"
    assert not [name for name in read(watched) if name[0] == "raylway_restarts"]


def test_each_reading_goes_on_where_the_last_one_ended(tmp_path, trained):
    folder, journal = RunFolder(tmp_path), Journal(tmp_path / "journal.jsonl")
    watched = metrics_export.Gauges(trained.run, folder)
    journal.write(10, {"perf/samples_per_second": 100.0})
    assert read(watched)["raylway_samples_per_second",] == 100
    journal.write(20, {"perf/samples_per_second": 50.0})
    found = read(watched)
    assert (found["raylway_step",], found["raylway_samples_per_second",]) == (20, 50)


def test_the_backlog_is_what_lies_behind_what_was_sent(tmp_path):
    folder, journal = RunFolder(tmp_path), Journal(tmp_path / "journal.jsonl")
    assert backlog(folder)[0] == 0
    journal.write(1, {"loss": 1.0})
    sent = folder.journal.stat().st_size
    assert backlog(folder)[0] == sent
    (tmp_path / "mlflow.json").write_text(json.dumps({"key": "k", "uri": "u", "offset": sent}))
    assert backlog(folder) == (0, 0.0)
    journal.write(2, {"loss": 0.5})
    unsent_bytes, seconds = backlog(folder, now=time.time() + 100)
    assert unsent_bytes == folder.journal.stat().st_size - sent
    assert 100 <= seconds < 160


def test_a_sweep_counts_its_trials_by_status(tmp_path):
    counted = metrics_export.of_sweep(RunFolder(tmp_path), lambda: ["running", "failed", "failed"])
    found = {tuple(sample.tags.values()): sample.value for sample in counted() if sample.metric is metrics_export.TRIALS}
    assert found == {("running",): 1, ("finished",): 0, ("stopped",): 0, ("failed",): 2}
