"""How many workers fit onto nodes: a worker is on one node, and a share of a GPU on one GPU."""

from __future__ import annotations

import pytest

from cluster.nodes import Node, fits, room


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "count"),
    [
        ([(4, 0)], 1, 0, 4),
        ([(4, 0)], 3, 0, 1),
        ([(1, 0), (1, 0)], 2, 0, 0),  # two halves of different nodes are no whole
        ([(3, 0), (3, 0)], 2, 0, 2),
        ([], 1, 0, 0),
        ([(0, 0), (4, 0)], 1, 0, 4),  # a head without CPUs
        ([(8, 2)], 1, 1, 2),
        ([(2, 8)], 1, 1, 2),  # CPUs limit
        ([(8, 3)], 1, 2, 1),
        ([(8, 2)], 1, 0.5, 4),
        ([(8, 2)], 1, 0.4, 4),  # five times 0.4 would need a share of both
        ([(8, 1.4)], 1, 0.4, 2),  # what is left of a GPU in use may be in pieces
        ([(8, 0)], 1, 0.5, 0),
        ([(1, 0)], 0.1, 0, 10),
        ([(0.3, 0)], 0.1, 0, 3),  # 0.3 / 0.1 is 2.9999999999999996
    ],
)
def test_whole_workers_are_counted_node_by_node(nodes, cpus, gpus, count):
    assert fits(nodes, cpus=cpus, gpus=gpus) == count


def test_on_a_node_that_leaves_there_is_no_room():
    staying, leaving = (Node(name, "10.0.0.7", 2, 0, name == "b") for name in "ab")
    assert room([staying, leaving], cpus=1, gpus=0) == 2


def test_a_node_is_told_by_its_address_and_the_first_letters_of_its_id():
    assert str(Node("0123456789abcdef", "10.0.0.7", 0, 0, False)) == "node 10.0.0.7 (01234567)"
