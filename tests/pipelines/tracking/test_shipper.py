"""Shipping to MLflow: all of it, once, in the background, and never at the training's cost."""

from __future__ import annotations

import http.server
import json
import shutil
import threading

import pytest

from pipelines.errors import StorageError
from pipelines.run_record import RunFolder
from pipelines.run_states import About
from pipelines.tracking import client, shipper
from pipelines.tracking.journal import Journal

SECRET = "hunter2-canary"


@pytest.fixture
def place(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def tracker(place, *, uri=None, name="a-run", tags=None, params=None, config="workload: cnn\n"):
    folder = RunFolder(place / "cnn" / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    about = About(
        name=name,
        experiment="cnn",
        params=params or {"optim.lr": 0.1},
        tags=tags or {},
        source="digits",
        fingerprint="f" * 16,
        config=config,
        began=1_700_000_000.0,
    )
    return shipper.Tracker(uri or f"sqlite:///{place}/mlflow.db", folder, place, about)


def write(folder, steps):
    journal = Journal(folder.journal)
    for step in steps:
        journal.write(step, {"loss": 1 / step, "accuracy": 1 - 1 / step})
    journal.close()


def history(place, run_id, name="loss"):
    return client.connect(f"sqlite:///{place}/mlflow.db").get_metric_history(run_id, name)


def test_a_resumed_run_goes_on_with_the_same_mlflow_run_and_no_point_is_doubled(place):
    first = tracker(place)
    write(first.folder, range(1, 1501))  # more than one batch
    first.start()
    first.close("KILLED", {})
    second = tracker(place)
    write(second.folder, range(1001, 2001))  # 1,001 to 1,500 are replayed
    second.start()
    second.close("FINISHED", {"stage": "finished"})
    assert second.run_id == first.run_id
    assert sorted(point.step for point in history(place, first.run_id)) == list(range(1, 2001))
    run = client.connect(f"sqlite:///{place}/mlflow.db").get_run(first.run_id)
    assert (run.info.status, run.data.tags["stage"], run.info.start_time) == ("FINISHED", "finished", 1_700_000_000_000)


def test_points_keep_the_journals_timestamps_so_sending_all_again_adds_nothing(place):
    first = tracker(place)
    write(first.folder, range(1, 51))
    first.start()
    first.flush()
    before = [(point.step, point.value, point.timestamp) for point in history(place, first.run_id)]
    state = first.folder.path / "mlflow.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"offset": 0}))  # as if the answer had been lost
    again = tracker(place)
    again.start()
    again.close("FINISHED", {})
    assert [(point.step, point.value, point.timestamp) for point in history(place, first.run_id)] == before


def test_a_run_created_just_before_a_crash_is_found_and_not_made_twice(place):
    first = tracker(place)
    first.start()
    first.flush()
    state = first.folder.path / "mlflow.json"
    key = json.loads(state.read_text())["key"]
    state.write_text(json.dumps({"key": key, "uri": "", "offset": 0}))
    again = tracker(place)
    again.start()
    again.flush()
    assert again.run_id == first.run_id


class Refusing(http.server.BaseHTTPRequestHandler):
    """A tracking server with nothing but faults."""

    def _refuse(self):
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = do_PATCH = _refuse

    def log_message(self, *_):
        pass


@pytest.fixture
def broken_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:{SECRET}@127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_broken_server_loses_nothing_and_a_working_one_gets_it_all(place, broken_server, monkeypatch):
    monkeypatch.setattr(shipper, "_FLUSH_SECONDS", 1.0)
    down = tracker(place, uri=broken_server)
    down.start()
    write(down.folder, range(1, 101))  # what the loop does meanwhile
    with pytest.raises(StorageError, match="nothing is lost") as raised:
        down.close("FINISHED", {})
    assert SECRET not in str(raised.value)
    up = tracker(place)
    up.start()
    up.close("FINISHED", {})
    assert [point.step for point in history(place, up.run_id)] == list(range(1, 101))


def test_no_secret_reaches_mlflow_or_a_file(place):
    uri = f"sqlite:///{place}/mlflow.db"
    tags = {"note": f"https://me:{SECRET}@host/x", "stage": f"api_key={SECRET}"}
    config = f"uri: postgresql://me:{SECRET}@db/mlflow\n"
    one = tracker(place, tags=tags, params={"data.source": f"s3://key:{SECRET}@bucket/x"}, config=config)
    one.start()
    one.close("FAILED", {"cause": f"cannot reach https://me:{SECRET}@host, password: {SECRET}"})
    assert client.connect(uri).get_run(one.run_id).data.tags["cause"].startswith("cannot reach https://me:***@host")
    assert [path for path in place.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("ftp://host", "not an MLflow address"),
        ("file:///runs", "not an MLflow address"),
        ("runs", "not an MLflow address"),
        (f"http://me:{SECRET}@127.0.0.1:9", "no MLflow server answers"),
    ],
)
def test_a_bad_address_is_refused_before_anything_starts(uri, sentence):
    with pytest.raises(StorageError, match=sentence) as raised:
        client.check(uri)
    assert SECRET not in str(raised.value)


def test_connecting_does_not_decide_where_the_next_run_of_this_process_is_tracked(place, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client.connect(f"sqlite:///{place}/mlflow.db")
    assert client.tracking_uri(place / "elsewhere", None) == f"sqlite:///{place}/elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///theirs.db")
    client.connect(f"sqlite:///{place}/mlflow.db")
    assert client.tracking_uri(place, None) == "sqlite:///theirs.db"
