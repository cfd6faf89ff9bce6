"""Checks before Ray connects, against a real gRPC server and errors that Ray made; and the watch of an open connection, at its sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from ray._private.utils import check_version_info, compute_version_info
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster import connection
from cluster.connection import Watch
from tests.cli import ROOT


class ControlPlane(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Answers as one of `version`, or wants a token."""

    def __init__(self, version: str, *, closed: bool) -> None:
        self.version, self.closed = version, closed

    def CheckAlive(self, request, context):
        if self.closed:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Authentication token is missing or incorrect")
        return gcs_service_pb2.CheckAliveReply(ray_version=self.version)


@contextmanager
def listening(version: str = "2.60.0", *, closed: bool = False):
    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(ControlPlane(version, closed=closed), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def said(address: str, **environment: str) -> str:
    """What `check` says of an address, in a process of its own: whether tokens are sent is decided once a process."""
    program = "import sys\nfrom cluster import ClusterError, connection\ntry: connection.check(sys.argv[1])\n"
    program += "except ClusterError as error: print(error)"
    clean = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program, address], env=clean | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_version_of_ray_is_refused():
    with listening("2.59.0") as address:
        told = said(address)
    assert f"RAY_ADDRESS={address}: the cluster runs Ray 2.59.0, this is Ray" in told
    assert "install the same versions" in told


def test_a_cluster_that_asks_for_a_token_says_what_to_set_and_never_the_token():
    with listening(closed=True) as address:
        assert "asks for a token, and none was sent; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in said(address)
        told = said(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="ab" * 16)
    assert "does not accept the token of RAY_AUTH_TOKEN" in told
    assert "abab" not in told


def test_a_token_where_none_is_asked_for_is_refused():
    with listening() as address:
        assert "RAY_AUTH_MODE=disabled" in said(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="ab" * 16)


def test_whether_anyone_is_let_in_is_asked_and_not_believed():
    with listening() as open_, listening(closed=True) as closed:
        assert connection.is_open(open_)
        assert not connection.is_open(closed)


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ({"ray_version": "2.59.0"}, "the cluster runs Ray 2.59.0 on Python"),
        ({"python_version": "3.9.1"}, "on Python 3.9.1, this is Ray"),
    ],
)
def test_what_ray_says_of_versions_becomes_a_sentence(theirs, told):
    ray, python = compute_version_info()
    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": ray, "python_version": python} | theirs, "node 10.0.0.1")
    sentence = str(connection.translated(raised.value, "RAY_ADDRESS=head:6379"))
    assert sentence.startswith("RAY_ADDRESS=head:6379: the cluster runs Ray ")
    assert told in sentence
    assert sentence.endswith("install the same versions on the driver and every node")
    assert "\n" not in sentence


def test_a_machine_that_is_no_node_is_told_to_submit():
    error = RuntimeError("No node info found matching attributes: '10.0.0.1' when trying to resolve node to connect to.")
    assert "this machine is none of its nodes" in str(connection.translated(error, "RAY_ADDRESS=head:6379"))


def test_the_address_of_jobs_is_named_as_such():
    with pytest.raises(connection.ClusterError, match="where jobs are submitted"):
        connection.check("http://head:8265")


# ---- while connected

WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored from birth where the tests run in the background of a script
from cluster.connection import Watch
watch = Watch(sys.argv[1], local=False, raylet=sys.argv[2])
try:
    time.sleep(100)
except KeyboardInterrupt as error:
    assert watch.explains(error)
    print(watch.lost, watch.error())
"""


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def address_of(of: socket.socket) -> str:
    return f"127.0.0.1:{of.getsockname()[1]}"


def test_who_waits_is_woken_when_the_raylet_is_gone():
    with listener() as plane, socket.socket() as gone_raylet:
        gone_raylet.bind(("127.0.0.1", 0))  # it does not listen, and nobody else can take its port
        gone = address_of(gone_raylet)
        program = [sys.executable, "-c", WAITING, address_of(plane), gone]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout == f"True this machine's own node of the cluster (its raylet) at {gone} is gone; what was saved stands\n"


def test_an_error_is_explained_by_the_control_plane_only_if_it_is_gone():
    with listener() as raylet:
        plane = listener()
        where = address_of(plane)
        watch = Watch(where, local=False, raylet=address_of(raylet))
        try:
            assert not watch.explains(RuntimeError("a bug"))
            plane.close()
            assert not watch.explains(KeyboardInterrupt())
            assert watch.explains(RuntimeError("connection lost"))
            assert str(watch.error()) == f"the cluster's control plane (GCS) at {where} is gone; what was saved stands"
        finally:
            watch.close()
