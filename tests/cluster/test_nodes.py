"""A node as it is named to people."""

from __future__ import annotations

from cluster.nodes import Node


def test_a_node_is_told_by_its_address_and_the_first_letters_of_its_id():
    assert str(Node("0123456789abcdef", "10.0.0.7", 0, 0, False)) == "node 10.0.0.7 (01234567)"
