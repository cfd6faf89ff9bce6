"""Errors of an address that is no usable Ray dashboard, each in one sentence; and the package of a job, which is what Ray packs."""

from __future__ import annotations

import http.server
import json
import logging
import os
import socket
import threading
import zipfile
from pathlib import Path

import pytest
import ray
from ray._private import ray_constants
from ray._private.runtime_env import working_dir
from ray._private.runtime_env.packaging import create_package
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import sdk

from cluster import ClusterError
from cluster.jobs import FILE_BYTES, Jobs, check_size, package_of
from tests.cli import ROOT
from tests.head import free_ports


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No token, no address and no proxy of whoever runs the tests."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")


@pytest.fixture
def answering():
    """`answering(status, body)`: the address of a server that says that to every question."""
    servers = []

    def start(status: int, body: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_nobody_there():
    [port] = free_ports(1)
    with pytest.raises(
        ClusterError, match=rf"^http://127.0.0.1:{port}: no Ray dashboard answers there \(Connection refused\); is the cluster up"
    ):
        Jobs(f"http://127.0.0.1:{port}")


def test_a_host_without_a_name():
    with pytest.raises(ClusterError, match=r"^http://no-such-host.invalid:8265: no Ray dashboard answers there"):
        Jobs("http://no-such-host.invalid:8265")


def test_one_who_never_answers_is_waited_for_in_bounds(monkeypatch):
    monkeypatch.setattr("cluster.jobs._ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ClusterError, match=r"no Ray dashboard answers there \(no answer in time\)"):
            Jobs(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (404, "not here", "the server there is no Ray dashboard"),
        (200, "<html>", "no Ray dashboard answers there"),
        (200, "{}", "the server there is no Ray dashboard (it tells no version)"),
        (401, "", "the cluster asks for a token, and none was sent; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        (500, "broken", "500 Server Error"),
        (200, json.dumps({"ray_version": "2.9.0"}), f"the cluster runs Ray 2.9.0, this is Ray {ray.__version__}; both must be the same"),
    ],
)
def test_what_answers_is_no_cluster_of_ours(answering, status, body, sentence):
    address = answering(status, body)
    with pytest.raises(ClusterError) as refused:
        Jobs(address)
    assert str(refused.value).startswith(f"{address}: ")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_address_that_is_given_is_asked_and_not_that_of_the_environment(answering):
    with pytest.raises(ClusterError, match=r"Ray 2\.9\.0"):
        Jobs(answering(200, json.dumps({"ray_version": "2.9.0"})))


def test_what_rays_client_logs_is_not_on_a_persons_screen(answering):
    Jobs(answering(200, json.dumps({"ray_version": ray.__version__})))
    loggers = [logging.getLogger(module.__name__) for module in (sdk, dashboard_sdk, working_dir)]
    assert not [each.name for each in loggers if each.isEnabledFor(logging.INFO)]


# ---- the package of a job

FILES = (
    "train.py",
    "data/kept.csv",
    "data/left.csv",
    ".git/HEAD",
    "runs/cnn/x",
    "a/runs/y",
    ".env",
    ".venv/bin/python",
    "a/__pycache__/b.pyc",
)


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("left.csv\n")
    return tmp_path


def packed(folder: Path, target: Path, *excludes: str) -> list[str]:
    """The files that Ray itself packs."""
    every = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    create_package(str(folder), target, include_gitignore=True, excludes=every)
    with zipfile.ZipFile(target) as package:
        return sorted(name for name in package.namelist() if not name.endswith("/"))


def test_ignored_files_caches_runs_and_passwords_stay(folder):
    assert sorted(package_of(folder).files) == [".gitignore", "a/runs/y", "data/kept.csv", "train.py"]


def test_what_is_counted_is_what_ray_packs(folder, tmp_path_factory):
    package = package_of(folder, ["*.csv"])
    assert sorted(package.files) == packed(folder, tmp_path_factory.mktemp("zip") / "package.zip", *package.excludes)
    assert package.bytes == sum((folder / name).stat().st_size for name in package.files)


def test_rayignore_and_excludes_leave_files_out(folder):
    (folder / ".rayignore").write_text("data/\n")
    assert "data/kept.csv" not in package_of(folder).files
    assert "train.py" not in package_of(folder, ["train.py"]).files


def test_other_content_has_another_address(folder):
    before = package_of(folder).uri
    assert package_of(folder).uri == before
    (folder / "data" / "left.csv").write_text("ignored, and other than before")
    assert package_of(folder).uri == before
    (folder / "train.py").write_text("other")
    assert package_of(folder).uri != before


def test_a_stray_file_of_200_mb_is_refused_by_name(folder):
    with (folder / "data" / "stray.bin").open("wb") as file:
        file.truncate(200 << 20)  # a hole: it takes no room on the disk
    with pytest.raises(
        ClusterError, match=r"^data/stray.bin \(200.0 MiB\): a file that goes up may have 100.0 MiB at most; leave files out by"
    ):
        package_of(folder)
    assert "data/stray.bin" not in package_of(folder, ["stray.bin"]).files


def test_a_file_as_large_as_may_be_goes_up_and_one_byte_more_does_not():
    check_size({"a": FILE_BYTES}, limit_bytes=1 << 40)
    with pytest.raises(ClusterError, match=r"^b \("):
        check_size({"a": FILE_BYTES, "b": FILE_BYTES + 1}, limit_bytes=1 << 40)


def test_many_files_that_are_too_much_together_are_refused_and_the_largest_named():
    sizes = {f"part-{number}": 90 << 20 for number in range(6)} | {"largest": 95 << 20}
    with pytest.raises(
        ClusterError, match=r"7 files of 635.0 MiB would go up, and Ray takes less than 512.0 MiB; the largest: largest \(95.0 MiB\)"
    ):
        check_size(sizes, limit_bytes=512 << 20)


def test_this_repository_is_small():
    assert package_of(ROOT).bytes < 5 << 20
    assert not [name for name in package_of(ROOT).files if name.startswith((".venv", ".git" + os.sep))]
