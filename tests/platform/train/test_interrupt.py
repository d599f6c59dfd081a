"""Signals: the first is a wish, the second an order; threads hear of what the main thread gets."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from heliostat.train.interrupt import StopRequests


def test_the_first_signal_is_remembered_once_and_the_second_raises() -> None:
    with StopRequests() as stop:
        assert not stop.is_new()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_new()
        assert not stop.is_new()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequests():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_of_an_earlier_training_does_not_stop_the_next() -> None:
    with StopRequests():
        os.kill(os.getpid(), signal.SIGINT)
    with StopRequests() as stop:
        assert not stop.is_new()


def test_threads_hear_of_it_also_those_that_begin_later() -> None:
    heard: list[bool] = []

    def train() -> None:
        with StopRequests() as stop:
            heard.append(stop.is_new())

    with StopRequests():
        os.kill(os.getpid(), signal.SIGINT)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    alone = threading.Thread(target=train)
    alone.start()
    alone.join()
    assert heard == [True, False]
