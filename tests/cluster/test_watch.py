"""That a cluster is gone is seen at its sockets, and ends what the main thread waits for."""

from __future__ import annotations

import socket
import subprocess
import sys

from cluster.connection import Watch
from tests.cli import ROOT

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


def address(of: socket.socket) -> str:
    return f"127.0.0.1:{of.getsockname()[1]}"


def test_who_waits_is_woken_when_the_raylet_is_gone():
    raylet = listener()
    gone = address(raylet)
    raylet.close()
    with listener() as plane:
        program = [sys.executable, "-c", WAITING, address(plane), gone]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout == f"True this machine's own node of the cluster (its raylet) at {gone} is gone; what was saved stands\n"


def test_an_error_is_explained_by_the_control_plane_only_if_it_is_gone():
    with listener() as raylet:
        plane = listener()
        where = address(plane)
        watch = Watch(where, local=False, raylet=address(raylet))
        try:
            assert not watch.explains(RuntimeError("a bug"))
            plane.close()
            assert not watch.explains(KeyboardInterrupt())
            assert watch.explains(RuntimeError("connection lost"))
            assert str(watch.error()) == f"the cluster's control plane at {where} is gone; what was saved stands"
        finally:
            watch.close()
