"""The order of rows in an epoch."""

from __future__ import annotations

import hashlib
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.order import Order, permutation

SIZES = st.one_of(st.integers(1, 2000), st.integers(65_530, 65_540), st.integers(131_000, 140_000))
SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=25)
@given(rows=SIZES, seed=SEEDS, epoch=st.integers(0, 2**31), shuffle=st.booleans())
def test_every_row_comes_once_in_an_epoch(rows, seed, epoch, shuffle) -> None:
    order = Order(rows, seed, epoch, shuffle)
    visited = order.at(np.arange(rows))
    assert np.array_equal(np.sort(visited), np.arange(rows))
    assert np.array_equal(np.concatenate([order.group(n) for n in range(order.groups)]), visited)


@settings(deadline=None, max_examples=25)
@given(rows=SIZES, seed=SEEDS, data=st.data())
def test_a_position_gives_the_same_row_alone_and_in_company(rows, seed, data) -> None:
    positions = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=20))
    everything = Order(rows, seed, 2).at(np.arange(rows))
    assert np.array_equal(Order(rows, seed, 2).at(positions), everything[positions])
    assert Order(rows, seed, 2).at([positions[0]])[0] == everything[positions[0]]


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(50, 5000), seed=SEEDS, epoch=st.integers(0, 1000))
def test_another_epoch_or_seed_is_another_order(rows, seed, epoch) -> None:
    def visited(seed: int, epoch: int) -> list[int]:
        return Order(rows, seed, epoch).at(np.arange(rows)).tolist()

    assert visited(seed, epoch) != visited(seed, epoch + 1)
    assert visited(seed, epoch) != visited(seed ^ 1, epoch)
    assert visited(seed, epoch) == visited(seed, epoch)


def test_without_shuffling_every_epoch_is_the_stored_order() -> None:
    for epoch in (0, 5):
        assert Order(100_000, 1, epoch, shuffle=False).at([0, 99_999]).tolist() == [0, 99_999]


def test_the_order_never_changes_between_machines_and_versions() -> None:
    assert permutation(10, seed=7, epoch=3, purpose=0).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]
    visited = Order(200_000, seed=1, epoch=1).at(np.arange(200_000))
    digest = hashlib.sha256(visited.astype("<i8").tobytes()).hexdigest()
    assert digest == "f591233384d6e56ce393e1d733a9203fe155437909964b9ced74c0ccaf31b724"


def test_small_sets_are_shuffled_as_a_whole() -> None:
    """Every row is as likely early as late: the mean position of any tenth is near the middle."""
    rows = 50_000
    place = np.empty(rows)
    place[Order(rows, 11, 0).at(np.arange(rows))] = np.arange(rows)
    deviation = rows / np.sqrt(12) / np.sqrt(rows / 10)
    for tenth in np.split(place, 10):
        assert abs(tenth.mean() - rows / 2) < 5 * deviation


def test_large_sets_mix_rows_from_everywhere() -> None:
    rows = 1_000_000
    window = Order(rows, 11, 0).at(np.arange(2048))
    histogram, _ = np.histogram(window, bins=10, range=(0, rows))
    assert histogram.min() > 100


def test_a_reader_touches_few_blocks_at_a_time() -> None:
    window = Order(1_000_000, 3, 0).at(np.arange(65_536))
    assert len(np.unique(window // 256)) == 256


def test_neighbours_in_the_table_are_not_neighbours_in_the_order() -> None:
    visited = Order(1_000_000, 3, 0).at(np.arange(300_000))
    assert (np.abs(np.diff(visited)) == 1).mean() < 0.001


def test_the_cost_of_a_position_does_not_grow_with_it() -> None:
    rows = 20_000_000

    def seconds(position: int) -> float:
        began = time.perf_counter()
        Order(rows, 1, 0).at([position])
        return time.perf_counter() - began

    seconds(0)
    first = min(seconds(0) for _ in range(5))
    last = min(seconds(rows - 1) for _ in range(5))
    assert last < 3 * first + 0.01


def test_an_order_is_pickled_without_what_it_computed() -> None:
    order = Order(1_000_000, 3, 0)
    order.at([5])
    copy = pickle.loads(pickle.dumps(order))
    assert len(pickle.dumps(order)) < 300
    assert copy.at([5]) == order.at([5])


@pytest.mark.parametrize("rows", [1, 2, 256, 257])
def test_tiny_sets_work(rows: int) -> None:
    assert sorted(Order(rows, 0, 0).at(np.arange(rows)).tolist()) == list(range(rows))
