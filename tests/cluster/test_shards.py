"""Pieces of a data set, worked on Ray Data."""

from __future__ import annotations

import os

import pytest

from cluster.shards import each

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_results_come_in_the_pieces_order_from_other_processes():
    told = each(lambda piece: {"square": piece**2, "process": os.getpid()}, [3, 1, 2, 5, 4])
    assert [result["square"] for result in told] == [9, 1, 4, 25, 16]
    assert os.getpid() not in {result["process"] for result in told}


def test_what_the_work_raises_is_raised_here_as_it_was():
    def work(piece):
        raise KeyError(f"piece {piece}")

    with pytest.raises(KeyError, match="piece 7"):
        each(work, [7])
