"""What is found on a node is held against what training needs; the numbers are worked out by hand."""

from __future__ import annotations

import pytest

from cluster import checks
from cluster.checks import FAIL, PASS, WARN, Check
from cluster.nodes import Node

NODE = Node("0123456789abcdef", "10.0.0.7", 4, 1, leaving=False)
HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cu126"}
GIB = 1 << 30


@pytest.mark.parametrize(
    ("there", "status", "words"),
    [
        ({}, PASS, "python 3.11.7, ray 2.60.0, torch 2.13.0+cu126"),
        ({"python": "3.11.9"}, WARN, "the driver has python 3.11.7"),
        ({"python": "3.12.1"}, FAIL, "the driver has python 3.11.7"),
        ({"torch": "2.12.0"}, FAIL, "the driver has torch 2.13.0+cu126"),
        ({"torch": ""}, FAIL, "torch missing; the driver has torch"),
        ({"python": "3.11.9", "torch": "2.12.0"}, FAIL, "the driver has python 3.11.7, torch"),
    ],
)
def test_versions_must_be_those_of_the_driver(there, status, words):
    check = checks.versions(NODE, HERE | there, HERE)
    assert (check.status, check.node) == (status, "node 10.0.0.7 (01234567)")
    assert words in check.found
    assert bool(check.fix) == (status != PASS)


@pytest.mark.parametrize(
    ("offered", "there", "status"),
    [
        ((4, 0), {"cores": 4, "gpus": 0}, PASS),
        ((8, 0), {"cores": 4, "gpus": 0}, WARN),
        ((4, 0), {"cores": 4, "gpus": 1}, WARN),
        ((4, 2), {"cores": 4, "gpus": 1}, FAIL),
        ((4, 1), {"cores": 4, "gpus": 1}, PASS),
    ],
)
def test_what_is_offered_must_be_there(offered, there, status):
    check = checks.resources(NODE, there | {"versions": HERE}, *offered)
    assert check.status == status
    assert bool(check.fix) == (status != PASS)


def test_a_torch_without_cuda_on_a_node_with_gpus_is_a_failure():
    check = checks.resources(NODE, {"cores": 4, "gpus": 1, "versions": {"torch": "2.13.0+cpu"}}, 4, 1)
    assert check.status == FAIL
    assert "2.13.0+cpu" in check.found


@pytest.mark.parametrize(
    ("name", "space", "status"),
    [
        ("storage", (6 * GIB, 1000 * GIB), PASS),
        ("storage", (4 * GIB, 1000 * GIB), WARN),
        ("storage", (GIB // 2, 1000 * GIB), FAIL),
        ("ray", (110 * GIB, 1000 * GIB), PASS),
        ("ray", (90 * GIB, 1000 * GIB), WARN),
        ("ray", (49 * GIB, 1000 * GIB), FAIL),
        ("shm", (2 * GIB, 2 * GIB), PASS),
        ("shm", (GIB // 4, GIB // 4), WARN),
        ("shm", (GIB // 16, GIB // 16), FAIL),
    ],
)
def test_disks_have_limits(name, space, status):
    [check] = checks.disks(NODE, {name: space})
    assert check.status == status
    assert bool(check.fix) == (status != PASS)


@pytest.mark.parametrize(
    ("skew", "uncertainty", "status"),
    [(0.4, 0.001, PASS), (-1.5, 0.001, WARN), (1.5, 0.8, PASS), (31.5, 0.2, FAIL), (-3600, 0.2, FAIL)],
)
def test_a_clock_may_be_a_second_off(skew, uncertainty, status):
    assert checks.clock(NODE, [(-uncertainty, skew, uncertainty)]).status == status


def test_who_cannot_import_the_program_is_told_how_its_code_gets_there():
    assert checks.code(NODE, {"package": True}, "pipelines").status == PASS
    missing = checks.code(NODE, {"package": False}, "pipelines")
    assert (missing.status, "raylway submit" in missing.fix) == (WARN, True)


@pytest.mark.parametrize(("check", "words"), [(checks.mlflow, "every node reaches"), (checks.storage, "all nodes share")])
def test_what_a_node_does_not_see_is_a_failure_with_its_cause(check, words):
    assert check(NODE, "/storage", "").status == PASS
    failed = check(NODE, "/storage", "timed out")
    assert (failed.status, failed.node) == (FAIL, "node 10.0.0.7 (01234567)")
    assert "timed out" in failed.found
    assert words in failed.fix


def test_half_of_the_round_trip_is_taken_off_a_clock():
    readings = [(100.0, 107.9, 102.0), (200.0, 205.3, 200.6)]  # the second came back sooner
    assert checks.clock(NODE, readings).found == "+5.000 s from the driver's, ± 0.300 s"
    assert checks.clock(NODE, []).found == "no answer within 10 s"


@pytest.mark.parametrize(
    ("hosts", "how", "status"),
    [
        (["10.0.0.7"], {"closed": True, "allow_open": False}, PASS),
        (["10.0.0.7", "127.0.0.1"], {"closed": False, "allow_open": False}, FAIL),
        (["10.0.0.7"], {"closed": False, "allow_open": True}, WARN),
        (["127.0.0.1"], {"closed": False, "allow_open": False}, WARN),
        (["::1"], {"closed": False, "allow_open": False}, WARN),
        (["head.example"], {"closed": False, "allow_open": False}, FAIL),
    ],
)
def test_who_is_let_in_without_a_token(hosts, how, status):
    check = checks.auth(hosts, sent=how["closed"], **how)
    assert check.status == status
    assert ("RAY_AUTH_MODE=token" in check.fix) == (status != PASS)


def test_bus_bandwidth_is_that_of_nccl_tests():
    # PERFORMANCE.md: algbw = S / t, busbw = algbw * 2 (n - 1) / n; 64 MiB in 0.1 s are 671 MB/s, between 4 times 1.5
    assert checks.all_reduce("gloo", 4, (0.1, 0.1)).found == "gloo, 4 processes, bus bandwidth 16 MB/s at 1 MiB, 1,007 MB/s at 64 MiB"
    assert checks.all_reduce("nccl", 2, (0.1, 0.1)).found == "nccl, 2 processes, bus bandwidth 10 MB/s at 1 MiB, 671 MB/s at 64 MiB"


def test_a_slow_or_broken_network_is_told_with_what_mends_it():
    assert checks.all_reduce("gloo", 2, (0.001, 0.1)).status == PASS
    slow = checks.all_reduce("gloo", 2, (0.001, 0.8))
    assert (slow.status, "1 Gbit/s" in slow.fix) == (WARN, True)
    broken = checks.all_reduce("gloo", 2, (), errors=["node 10.0.0.7 (01234567): no answer within 150 s"])
    assert (broken.status, "GLOO_SOCKET_IFNAME" in broken.fix) == (FAIL, True)
    assert "10.0.0.7" in broken.found


def test_the_worst_line_is_the_verdict():
    assert checks.worst([Check("a", "", PASS, ""), Check("b", "", WARN, "")]) == WARN
    assert checks.worst([Check("a", "", FAIL, ""), Check("b", "", WARN, "")]) == FAIL
    assert checks.worst([Check("a", "", PASS, "")]) == PASS
