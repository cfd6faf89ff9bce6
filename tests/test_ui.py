"""`raylway ui`: the printed address answers with the runs of this storage; what cannot be shown is one sentence."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import time
import urllib.error
import urllib.request

import pytest

from pipelines.tracking.client import connect
from tests.cli import raylway, start


@pytest.fixture
def home(tmp_path, empty_database):
    """A home folder with a storage that has one run in it."""
    (tmp_path / "kept").mkdir()
    shutil.copy(empty_database, tmp_path / "kept" / "mlflow.db")
    client = connect(f"sqlite:///{tmp_path}/kept/mlflow.db")
    experiment = client.create_experiment("mine", artifact_location=(tmp_path / "kept" / "artifacts").as_uri())
    run = client.create_run(experiment, run_name="only-here")
    client.log_text(run.info.run_id, "what was kept", "note.txt")
    return tmp_path


def asked(address, path, **body):
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.long
def test_the_printed_address_answers_with_the_runs_of_this_storage_even_where_the_usual_port_is_taken(home):
    with socket.socket() as usual:
        usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            usual.bind(("127.0.0.1", 5000))
            usual.listen()
        except OSError:
            pass  # another process has it: as good
        process = start(["ui", "--storage", "~/kept"], cwd=home, HOME=str(home))
        try:
            assert process.stdout
            assert select.select([process.stdout], [], [], 60)[0]
            [address] = re.findall(r"^(http://127\.0\.0\.1:\d+)/#/experiments", process.stdout.readline())
            assert not address.endswith(":5000")
            deadline = time.monotonic() + 120
            while True:
                try:
                    assert asked(address, "/health") == "OK"
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            experiments = json.loads(asked(address, "/api/2.0/mlflow/experiments/search", max_results=10))["experiments"]
            [mine] = [each["experiment_id"] for each in experiments if each["name"] == "mine"]
            found = json.loads(asked(address, "/api/2.0/mlflow/runs/search", experiment_ids=[mine]))["runs"]
            assert [run["info"]["run_name"] for run in found] == ["only-here"]
            assert asked(address, f"/get-artifact?run_id={found[0]['info']['run_id']}&path=note.txt") == "what was kept"
            assert "<script" in asked(address, "/")
            assert not re.findall(r'(?:src|href)="(?:https?:)?//', asked(address, "/")), "the page asks nobody else"
        finally:
            process.terminate()
            process.wait(timeout=60)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()


def test_what_cannot_be_shown_is_one_sentence(home, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = raylway("ui", "--storage", "empty", cwd=tmp_path)
    assert (code, err) == (12, f"error: {tmp_path}/empty/mlflow.db: no runs are kept there yet\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = raylway("ui", "--storage", "kept", "--port", str(port), cwd=tmp_path)
    assert code == 12
    assert err == f"error: --port {port}: cannot be had, another process may have it; without --port a free one is found\n"
    assert not os.path.exists(tmp_path / "empty" / "mlflow.db")
