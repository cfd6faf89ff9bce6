"""The rows of a step are a slice of an endless sequence of permutations."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data import order as order_module
from pipelines.data.order import Order, micro_batches, permuted


def stream(order: Order, steps: int) -> np.ndarray:
    return np.concatenate([order.of_step(step) for step in range(steps)])


def test_every_epoch_sees_each_row_once() -> None:
    epochs = stream(Order(rows=60, batch=12, seed=4), 15).reshape(3, 60)
    assert all(sorted(epoch.tolist()) == list(range(60)) for epoch in epochs)


@given(rows=st.integers(1, 40), batch=st.integers(1, 100), seed=st.integers(0, 2**62), steps=st.integers(1, 12))
def test_the_stream_is_the_permutations_one_after_another(rows: int, batch: int, seed: int, steps: int) -> None:
    endless = stream(Order(rows, batch, seed), steps)
    assert len(endless) == steps * batch
    epochs = ceil(len(endless) / rows)
    expected = np.concatenate([np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(epochs)])
    np.testing.assert_array_equal(endless, expected[: len(endless)])


def test_steps_may_be_asked_for_in_any_order() -> None:
    order = Order(rows=25, batch=7, seed=0)
    forward = [order.of_step(step).tolist() for step in range(30)]
    backward = [Order(rows=25, batch=7, seed=0).of_step(step).tolist() for step in reversed(range(30))]
    assert forward == backward[::-1]


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    first, again, other = (stream(Order(50, 10, seed), 5).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_two_epochs_have_different_orders() -> None:
    first, second = stream(Order(50, 10, 0), 10).reshape(2, 50)
    assert first.tolist() != second.tolist()


@given(rows=st.integers(1, 3000), seed=st.integers(0, 2**62), epoch=st.integers(0, 10))
def test_a_permutation_that_is_not_written_out_is_one_all_the_same(rows: int, seed: int, epoch: int) -> None:
    places = np.random.default_rng(0).permutation(rows)  # in whatever order, and however many at a time, they are asked for
    found = np.concatenate([permuted(part, rows, seed, epoch) for part in np.array_split(places, 3)])
    assert sorted(found.tolist()) == list(range(rows))
    np.testing.assert_array_equal(found, permuted(np.arange(rows), rows, seed, epoch)[places])


def test_a_permutation_that_is_not_written_out_looks_drawn() -> None:
    rows = 100_003
    first, second = (permuted(np.arange(rows), rows, 0, epoch) for epoch in range(2))
    halves = np.stack([first[: rows // 2], first[rows // 2 : rows // 2 * 2]])
    assert abs(halves.mean(axis=1) / rows - 0.5).max() < 0.005  # three standard errors
    assert abs(np.corrcoef(first, np.arange(rows))[0, 1]) < 0.01
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
    assert (first == np.arange(rows)).sum() < 10
    assert abs(np.diff(first) == 1).sum() < 10


@given(rows=st.integers(1, 40), batch=st.integers(1, 100), seed=st.integers(0, 2**62), epochs=st.integers(1, 4))
def test_data_too_large_to_write_an_epoch_out_are_seen_once_an_epoch_too(rows: int, batch: int, seed: int, epochs: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "LISTED_ROWS", 0)
        endless = stream(Order(rows, batch, seed), ceil(epochs * rows / batch))[: epochs * rows]
    for epoch in endless.reshape(epochs, rows):
        assert sorted(epoch.tolist()) == list(range(rows))


@given(batch=st.integers(1, 300), micro_batch=st.integers(1, 300), world_size=st.integers(1, 9))
def test_the_workers_micro_batches_partition_the_batch(batch: int, micro_batch: int, world_size: int) -> None:
    shares = [micro_batches(batch, micro_batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [each for share in shares for each in share]
    assert [number for number, _ in together] == list(range(ceil(batch / micro_batch)))
    assert [row for _, rows in together for row in range(batch)[rows]] == list(range(batch))
    assert all(0 < rows.stop - rows.start <= micro_batch for _, rows in together)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_cut_is_the_same_for_any_number_of_workers(world_size: int) -> None:
    cut = [each for rank in range(world_size) for each in micro_batches(100, 9, rank=rank, world_size=world_size)]
    assert cut == micro_batches(100, 9, rank=0, world_size=1)


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60).map(np.array)


@given(lengths=LENGTHS, batch=st.integers(1, 20), seed=st.integers(0, 2**62), epochs=st.integers(1, 4), listed=st.sampled_from([0, 10**6]))
def test_rows_of_about_one_length_share_a_batch_and_every_epoch_still_sees_each_row_once(
    lengths: np.ndarray, batch: int, seed: int, epochs: int, listed: int
) -> None:
    rows = len(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "LISTED_ROWS", listed)
        endless = stream(Order(rows, batch, seed, lengths.__getitem__), ceil(epochs * rows / batch))[: epochs * rows]
    for epoch in endless.reshape(epochs, rows):
        assert sorted(epoch.tolist()) == list(range(rows))


@pytest.mark.parametrize("listed", [0, 10**6])
def test_batches_by_length_hold_little_padding_in_every_epoch(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    monkeypatch.setattr(order_module, "LISTED_ROWS", listed)
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    by_length, drawn = Order(1003, 16, 0, lengths.__getitem__), Order(1003, 16, 0)

    def padded(order: Order, steps: range) -> float:
        return float(np.mean([lengths[order.of_step(step)].max() for step in steps]))

    for epoch in range(3):  # the rows are no multiple of the batch, so each epoch begins at another place in a batch
        steps = range(epoch * 62 + epoch, (epoch + 1) * 62)
        assert padded(by_length, steps) < 60 < 85 < padded(drawn, steps)


def test_batches_by_length_come_in_no_order_of_length() -> None:
    lengths = np.arange(800)
    longest = [int(lengths[Order(800, 16, 0, lengths.__getitem__).of_step(step)].max()) for step in range(50)]
    assert sorted(longest) == list(range(15, 800, 16))
    assert longest != sorted(longest)
