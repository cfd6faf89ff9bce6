"""`raylway doctor` against real clusters: all is well on one, and each thing that can be wrong is made to be wrong on another."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli import raylway
from tests.head import free_ports, head, new_token

pytestmark = pytest.mark.slow
QUICK = ("train.steps=20", "scale.threads=1", "track.register=false")
CHECKS = {"storage", "mlflow", "cluster", "auth", "versions", "code", "resources", "disk", "clock", "all-reduce"}


def own_address() -> str:
    """The address that others have of this machine, 127.0.0.1 if it has no network; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("8.8.8.8", 53))
        return str(asked.getsockname()[0])
    return "127.0.0.1"


def bound(*pairs: tuple[Path, Path]) -> list[str]:
    """What starts a node for which each second folder is what lies in the first: a mount namespace of its own."""
    mounts = " && ".join(f"mount --bind '{other}' '{place}'" for other, place in pairs)
    return ["unshare", "-Urm", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


def login(cluster) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token} if cluster.token else {"RAY_AUTH_MODE": "disabled"}


def doctor(cluster, storage, *words, cwd):
    """(exit code, checks, all that was printed) of a doctor of this cluster."""
    code, told, err = raylway("doctor", "--address", cluster.address, f"storage={storage}", *words, "--json", cwd=cwd, **login(cluster))
    assert told, err
    return code, told["checks"], err + str(told)


def wrong(checks):
    return {(check["name"], check["status"]) for check in checks if check["status"] != "PASS"}


@contextlib.contextmanager
def pair(wrap=()):
    with head(cpus=1, token=new_token()) as cluster:
        cluster.join(cpus=1, wrap=wrap)
        yield cluster


@pytest.fixture(scope="module")
def well():
    """Two nodes with a token."""
    with pair() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """(cluster, storage): a node has another folder under the storage's name, and no torch."""
    storage, other, nothing = (tmp_path_factory.mktemp(name) for name in ("storage", "other", "nothing"))
    torch = Path(importlib.util.find_spec("torch").origin).parent
    with pair(bound((other, storage), (nothing, torch))) as cluster:
        yield cluster, storage


def test_a_cluster_that_is_well_passes_on_every_node(well, tmp_path):
    code, checks, printed = doctor(well, tmp_path, cwd=tmp_path)
    assert wrong(checks) == set(), printed
    assert code == 0
    assert {check["name"] for check in checks} == CHECKS
    nodes = {check["node"] for check in checks} - {"", "driver"}
    assert len(nodes) == 2
    for name in ("versions", "code", "resources", "clock", "storage"):
        assert {check["node"] for check in checks if check["name"] == name} - {"driver"} == nodes
    [ring] = [check["found"] for check in checks if check["name"] == "all-reduce"]
    assert ring.startswith("gloo, 2 processes, bus bandwidth ")
    assert str(well.token) not in printed
    assert not list(tmp_path.glob(".canary*"))


def test_workers_that_can_never_be_there_and_a_server_that_nobody_reaches_are_told(well, tmp_path):
    [port] = free_ports(1)
    uri = f"http://someone:secret-word@127.0.0.1:{port}"
    code, checks, printed = doctor(well, tmp_path, f"track.uri={uri}", "scale.workers=3", "scale.gpus=1", cwd=tmp_path)
    assert code == 12
    assert wrong(checks) == {("mlflow", "FAIL"), ("workers", "FAIL")}
    assert len([check for check in checks if check["name"] == "mlflow"]) == 3
    assert "scale.workers=3 x 1 CPU = 3, but the cluster has 2 CPUs" in printed
    assert "secret-word" not in printed


def test_another_storage_and_a_missing_torch_are_failures_of_that_node(ill, tmp_path):
    cluster, storage = ill
    code, checks, printed = doctor(cluster, storage, cwd=tmp_path)
    assert code == 12
    assert wrong(checks) == {("versions", "FAIL"), ("storage", "FAIL"), ("all-reduce", "WARN")}, printed
    nodes = {check["node"] for check in checks if check["status"] == "FAIL"}
    assert len(nodes) == 1
    [torch] = [check for check in checks if check["name"] == "versions" and check["status"] == "FAIL"]
    assert "torch missing" in torch["found"]
    assert "torch" in torch["fix"]
    assert "what the driver writes is not seen there" in printed
    assert "NFS" in printed


@pytest.mark.parametrize("verb", [["train", "cnn"], ["sweep", "cnn", "--space", "optim.lr=loguniform(1e-4,1e-1)", "--trials", "2"]])
def test_nothing_is_launched_where_a_node_has_another_storage(ill, tmp_path, verb):
    cluster, storage = ill
    words = [*verb, *QUICK, f"storage={storage}", "name=" + verb[0], "--json"]
    code, told, err = raylway(*words, cwd=tmp_path, RAY_ADDRESS=cluster.address, **login(cluster))
    assert code == 12, err
    assert f"storage={storage} is not the same folder on node" in told["error"]
    assert "use a path that all nodes share" in told["error"]
    assert "resume with" not in err
    assert not list(storage.glob("cnn/*/checkpoints/*"))
    assert not list(storage.glob("datasets/*"))
    assert not list(storage.glob(".canary*"))


def test_a_cluster_that_lets_anyone_in_is_refused_unless_it_is_said_to_be_meant(tmp_path):
    if own_address().startswith("127."):
        pytest.skip("this machine has no address but that of itself")
    with head(cpus=1) as cluster:
        code, checks, printed = doctor(cluster, tmp_path, cwd=tmp_path)
        assert (code, wrong(checks)) == (12, {("auth", "FAIL")}), printed
        assert own_address() in printed
        assert "RAY_AUTH_MODE=token" in printed
        code, checks, printed = doctor(cluster, tmp_path, "--allow-open", cwd=tmp_path)
        assert (code, wrong(checks)) == (0, {("auth", "WARN")}), printed


def test_a_cluster_that_is_not_there_is_a_line_like_any_other(tmp_path):
    [port] = free_ports(1)
    code, told, err = raylway("doctor", "--address", f"127.0.0.1:{port}", "--json", cwd=tmp_path)
    assert code == 12
    assert told["status"] == "FAIL"
    assert [(check["name"], check["status"]) for check in told["checks"]] == [("storage", "PASS"), ("mlflow", "PASS"), ("cluster", "FAIL")]
    assert f"the cluster at 127.0.0.1:{port}: no Ray control plane (GCS) answers there" in err


def test_a_node_that_does_not_answer_is_a_failure_and_no_hang(tmp_path):
    with pair() as cluster:
        [frozen] = [raylet for raylet in cluster.processes("raylet") if "--head" not in raylet.cmdline()]
        frozen.suspend()
        code, checks, printed = doctor(cluster, tmp_path, cwd=tmp_path)
        frozen.resume()
    assert (code, wrong(checks)) == (12, {("answer", "FAIL")}), printed
    assert [check["found"].split()[0] for check in checks if check["name"] == "all-reduce"] == ["gloo,"]


AHEAD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int done = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += 90;
  return done;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the library that sets a clock forward")
def test_a_node_whose_clock_is_ahead_is_told(tmp_path):
    (tmp_path / "ahead.c").write_text(AHEAD)
    library = tmp_path / "ahead.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "ahead.c", "-ldl"], check=True)
    with pair(["env", f"LD_PRELOAD={library}"]) as cluster:
        code, checks, printed = doctor(cluster, tmp_path, cwd=tmp_path)
    assert (code, wrong(checks)) == (12, {("clock", "FAIL")}), printed
    assert [check["found"][:3] for check in checks if check["name"] == "clock" and check["status"] == "FAIL"] in (["+90"], ["+89"])
