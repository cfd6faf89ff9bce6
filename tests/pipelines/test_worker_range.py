"""How many workers a run may have, as it is written and as it is counted with."""

from __future__ import annotations

import pytest

from pipelines.settings import Scale
from pipelines.worker_range import WorkerRange


@pytest.mark.parametrize(
    ("written", "least", "most"), [(4, 4, 4), ("4", 4, 4), (0, 0, 0), ("1..4", 1, 4), ("2..3", 2, 3), (WorkerRange(2, 4), 2, 4)]
)
def test_a_number_or_a_range_is_read(written, least, most):
    found = WorkerRange.read(written)
    assert (found.least, found.most, found.elastic) == (least, most, least < most)


@pytest.mark.parametrize("written", ["", "four", "1..", "..4", "1...4", "1..4..6", "-1", 1.5, True, None, "9999999"])
def test_what_is_neither_is_refused_with_what_would_be_right(written):
    with pytest.raises(ValueError, match=r"is neither a number of workers, such as 4, nor a range, such as 1..4"):
        WorkerRange.read(written)


@pytest.mark.parametrize("written", ["0..4", "4..4", "4..1"])
def test_a_range_goes_up_from_one_or_more(written):
    with pytest.raises(ValueError, match=r"a range goes from at least 1 worker up to more, such as 1..4"):
        WorkerRange.read(written)


def test_it_is_written_as_it_was_read_and_no_workers_are_none():
    assert (f"{WorkerRange(1, 4)}", WorkerRange(1, 4).written) == ("1..4", "1..4")
    assert (f"{WorkerRange(3, 3)}", WorkerRange(3, 3).written) == ("3", 3)
    assert [bool(WorkerRange.read(written)) for written in (0, 1, "1..4")] == [False, True, True]


@pytest.mark.parametrize("written", [3, "1..4"])
def test_a_setting_is_stored_as_it_is_written_and_read_again(written):
    stored = Scale(workers=written).model_dump(mode="json")
    assert stored["workers"] == written
    again = Scale(**stored)
    assert again.workers == WorkerRange.read(written)
