"""Prometheus's side of a run: a real training on a Ray of its own, scraped over HTTP as Prometheus does, while its worker is killed."""

from __future__ import annotations

import re
import socket
import time
import urllib.request

import psutil
import pytest

from pipelines import metrics_export
from tests.cli import finish, raylway, start

_LINE = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def scraped(port):
    """(name, cause or status) -> (value, labels) of our metrics."""
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        if line.startswith("ray_raylway") and (match := _LINE.match(line)):
            labels = dict(_LABEL.findall(match["labels"]))
            found[match["name"], labels.get("cause", labels.get("status", ""))] = float(match["value"]), labels
    return found


def wait_for(process, port, wanted, seconds=180):
    """Scrape until all metrics of `wanted` are there; what was found."""
    deadline = time.monotonic() + seconds
    while not wanted <= set(found := scraped(port)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, sorted(found)
        time.sleep(0.5)
    return found


def training_workers(process):
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_run_is_scraped_with_all_its_numbers_and_a_killed_worker_is_counted(tmp_path):
    port = free_port()
    command = ("train", "cnn", "train.steps=100000", "train.batch=8", "train.checkpoint_every=200", "scale.threads=1", "name=watched")
    process = start(command, cwd=tmp_path, RAYLWAY_METRICS_PORT=str(port), RAY_metrics_report_interval_ms="1000")
    try:
        of_a_run = {metric for metric in metrics_export.ALL if metric not in (metrics_export.TRIALS, metrics_export.RESTARTS)}
        found = wait_for(process, port, {(metric.exported_as, "") for metric in of_a_run})
        value = {name: number for (name, _), (number, _) in found.items()}
        labels = found[metrics_export.STEP.exported_as, ""][1]
        assert (labels["run"], labels["recipe"]) == ("watched", "cnn")
        assert value["ray_raylway_samples_per_second"] > 1
        assert value["ray_raylway_step"] > 1
        assert value["ray_raylway_step_seconds"] == pytest.approx(8 / value["ray_raylway_samples_per_second"], rel=0.5)
        assert 0 <= value["ray_raylway_data_wait_ratio"] < 1
        assert 0 < value["ray_raylway_checkpoint_seconds"] < 60
        for worker in training_workers(process):
            worker.kill()
        found = wait_for(process, port, {(metrics_export.RESTARTS.exported_as, "worker")})
        assert found[metrics_export.RESTARTS.exported_as, "worker"][0] == 1
    finally:
        process.terminate()
        finish(process)


@pytest.mark.slow
def test_a_metrics_port_that_is_none_is_refused_with_what_would_be_right(tmp_path):
    code, _, err = raylway("train", "cnn", cwd=tmp_path, RAYLWAY_METRICS_PORT="80a")
    assert code == 12
    assert "RAYLWAY_METRICS_PORT=80a: not a port; write a number from 1024 to 65535" in err
