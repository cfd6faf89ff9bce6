"""How many workers a run may have, as it is written and as it is counted with."""

from __future__ import annotations

import pytest

from pipelines.settings import Scale
from pipelines.worker_range import Workers, workers


@pytest.mark.parametrize(
    ("written", "least", "most"), [(4, 4, 4), ("4", 4, 4), (0, 0, 0), ("1..4", 1, 4), ("2..3", 2, 3), (Workers(4, 2), 2, 4)]
)
def test_a_number_or_a_span_is_read(written, least, most):
    found = workers(written)
    assert (found.least, int(found), found.elastic) == (least, most, least < most)


@pytest.mark.parametrize("written", ["", "four", "1..", "..4", "1...4", "1..4..6", "-1", 1.5, True, None, "9999999"])
def test_what_is_neither_is_refused_with_what_would_be_right(written):
    with pytest.raises(ValueError, match=r"is neither a number of workers, such as 4, nor a span, such as 1..4"):
        workers(written)


@pytest.mark.parametrize("written", ["0..4", "4..4", "4..1"])
def test_a_span_goes_up_from_one_or_more(written):
    with pytest.raises(ValueError, match=r"a span goes from at least 1 worker up to more, such as 1..4"):
        workers(written)


def test_it_is_a_number_to_who_counts_and_a_span_to_who_reads():
    span = workers("1..4")
    assert span + 0 == 4
    assert max(span, 2) == 4
    assert (f"{span}", str(span), repr(span), span.written) == ("1..4", "1..4", "1..4", "1..4")
    assert (f"{workers(3)}", workers(3).written) == ("3", 3)


@pytest.mark.parametrize("written", [3, "1..4"])
def test_a_setting_is_stored_as_it_is_written_and_read_again(written):
    stored = Scale(workers=written).model_dump(mode="json")
    assert stored["workers"] == written
    again = Scale(**stored)
    assert (int(again.workers), again.workers.least) == (int(workers(written)), workers(written).least)
