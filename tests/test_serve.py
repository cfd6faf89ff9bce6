"""The Ray Serve application of infra/serve, as its first lines say it is started: the same answers, together, and health."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipelines.data.embedded import digits
from pipelines.tracking.client import connect
from tests.cli import ROOT
from tests.trained import storage_with, trained

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(importlib.util.find_spec("grpc_reflection") is None, reason="ray[serve] is not installed"),
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory, empty_database):
    folder = storage_with(tmp_path_factory.mktemp("serve"), empty_database)
    trained(folder, recipe="cnn")
    return folder


@pytest.fixture(scope="module")
def served(storage, tmp_path_factory):
    """`served(path, body)`: (status, JSON) of a request to the application, running in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{storage}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"PYTHONPATH": os.environ.get("SERVE_SITE", "")}
    command = [sys.executable, str(ROOT / "infra/serve/app.py"), "models:/cnn@champion", "--port", str(port), "--wait-seconds", "0.2"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=storage, env=environment, stdout=out, stderr=out, start_new_session=True)

    def ask(path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text

    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if ask("/ping")[0] == 200:
                    break
            except (OSError, ValueError):
                pass
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield ask
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def test_its_answers_are_those_of_the_registered_model(served, storage):
    import mlflow

    connect(f"sqlite:///{storage}/mlflow.db")
    images = digits()["image"][:20]
    wanted = mlflow.pyfunc.load_model("models:/cnn@champion").predict(images)
    with ThreadPoolExecutor(10) as threads:  # at once, so that they are answered together
        bodies = [json.dumps({"inputs": images[2 * number : 2 * number + 2].tolist()}).encode() for number in range(10)]
        told = list(threads.map(lambda body: served("/invocations", body), bodies))
    assert {status for status, _ in told} == {200}
    rows = [row for _, answer in told for row in answer["predictions"]]
    assert [row["label"] for row in rows] == wanted["label"].tolist()
    np.testing.assert_allclose([row["probabilities"] for row in rows], np.stack(wanted["probabilities"]), atol=1e-5)


def test_requests_that_come_at_once_are_answered_together(served):
    body = json.dumps({"inputs": digits()["image"][:1].tolist()}).encode()
    began = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        assert {status for status, _ in threads.map(lambda _: served("/invocations", body), range(16))} == {200}
    assert time.monotonic() - began < 16 * 0.2, "each alone would have waited 0.2 s for others"


def test_a_wrong_request_is_told_so_and_spoils_no_other(served):
    good = json.dumps({"inputs": digits()["image"][:1].tolist()}).encode()
    bodies = [b"no json", json.dumps({"inputs": [[[999] * 8] * 8]}).encode(), json.dumps({"inputs": [[1, 2]]}).encode(), good, good]
    with ThreadPoolExecutor(5) as threads:
        told = list(threads.map(lambda body: served("/invocations", body), bodies))
    assert [status for status, _ in told] == [400, 400, 400, 200, 200]
    assert all(answer["error"] for status, answer in told if status == 400)


def test_health_names_the_model(served):
    status, told = served("/ping")
    assert (status, told["model"]) == (200, "models:/cnn@champion")
    assert told["model_id"].startswith("m-")
