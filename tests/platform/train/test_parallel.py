"""Several trainings at a time, and how they stop together."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from heliostat.errors import Interrupted
from heliostat.train.interrupt import StopRequests
from heliostat.train.parallel import in_parallel


def test_results_come_in_the_order_of_the_items() -> None:
    gates = [threading.Event() for _ in range(3)]
    gates[2].set()

    def work(item: int) -> int:
        # The last is the first to end.
        assert gates[item].wait(10)
        gates[item - 1].set()
        return item * item

    assert in_parallel(work, range(3), at_a_time=3) == [0, 1, 4]


def test_a_signal_stops_what_runs_and_nothing_new_begins() -> None:
    begun: list[int] = []
    both = threading.Barrier(3)

    def work(item: int) -> None:
        with StopRequests() as stop:
            begun.append(item)
            both.wait(10)
            deadline = time.monotonic() + 10
            while not stop.is_new():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        raise Interrupted(f"{item} was stopped and saved")

    def signal_when_both_run() -> None:
        both.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=signal_when_both_run)
    helper.start()
    with pytest.raises(Interrupted, match="stopped and saved"):
        in_parallel(work, range(6), at_a_time=2)
    helper.join()
    assert sorted(begun) == [0, 1]


def test_after_an_error_nothing_new_begins_and_the_error_is_raised() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item} is wrong")

    with pytest.raises(ValueError, match="item 0 is wrong"):
        in_parallel(work, range(50), at_a_time=1)
    assert len(begun) < 50
