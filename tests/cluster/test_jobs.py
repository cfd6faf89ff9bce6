"""What answers at an address is told in one sentence if it is not the dashboard of a cluster that lets us in."""

from __future__ import annotations

import http.server
import json
import socket
import threading

import pytest
import ray

from cluster import ClusterError
from cluster.jobs import Jobs
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
        (404, "not here", "what answers there is no Ray dashboard"),
        (200, "<html>", "no Ray dashboard answers there"),
        (200, "{}", "what answers there is no Ray dashboard (it tells no version)"),
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
