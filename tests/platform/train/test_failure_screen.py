"""Which worker is to blame, and what the user reads."""

from __future__ import annotations

import pytest

from heliostat.train.failure import Explanation, explain, is_collateral, screen
from heliostat.train.monitor import Monitor, WorkerFailure

RESET = "[gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:35: Connection reset by peer"


def failure(rank: int, at: float, *, collateral: bool = False, attempt: int = 1) -> WorkerFailure:
    return WorkerFailure(
        attempt=attempt,
        rank=rank,
        node="node-b",
        step=7,
        kind="RuntimeError" if collateral else "ValueError",
        message=RESET if collateral else "sample 3 is cursed",
        traceback="Traceback (most recent call last):\n  x\nValueError: sample 3 is cursed",
        is_collateral=collateral,
        at=at,
    )


@pytest.mark.parametrize(
    ("error", "collateral"),
    [
        (RuntimeError(RESET), True),
        (RuntimeError("Connection closed by peer [127.0.0.1]:4711"), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (ValueError("the peer review was aborted: connection reset"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_only_lost_connections_are_collateral(error: Exception, collateral: bool) -> None:
    assert is_collateral(error) is collateral


@pytest.mark.parametrize("text", [RESET, "sample 3 is cursed"])
def test_an_error_raised_from_a_lost_connection_is_collateral(text: str) -> None:
    with pytest.raises(ValueError, match="layer 3") as caught:
        raise ValueError("layer 3") from RuntimeError(text)
    assert is_collateral(caught.value) is (text == RESET)


def test_the_root_is_the_worker_with_an_error_of_its_own_even_if_it_told_later() -> None:
    found = explain([failure(0, 1.0, collateral=True), failure(1, 2.0)], {}, Exception("x"))
    assert found.sentence == (
        "worker 1 on node node-b failed after step 7: ValueError: sample 3 is cursed"
    )
    assert found.collateral == (0,)
    assert found.step == 7


def test_a_worker_that_vanished_is_to_blame_for_those_that_lost_it() -> None:
    reported = {
        0: RuntimeError(RESET),
        1: RuntimeError("ActorDiedError: The actor died unexpectedly. ip: 10.0.0.7. It crashed."),
    }
    found = explain([failure(0, 1.0, collateral=True)], reported, Exception("x"))
    assert found.sentence == (
        "worker 1 on node 10.0.0.7 was killed or crashed "
        "(its process ended without a Python exception)"
    )
    assert found.collateral == (0,)


def test_a_worker_killed_for_its_memory_is_said_to_have_run_out_of_it() -> None:
    reported = {1: RuntimeError("ActorDiedError: killed due to memory pressure (OOM)")}
    assert "worker 1 ran out of memory" in explain([], reported, Exception("x")).sentence


def test_without_a_worker_to_blame_the_error_itself_is_told() -> None:
    found = explain([], {}, TimeoutError("30 starts timed out\nmore"))
    assert found.sentence == "TimeoutError: 30 starts timed out"


def test_the_screen_names_cause_collateral_step_and_checkpoint_and_fits_a_terminal() -> None:
    long = "\n".join(["Traceback (most recent call last):", *(f"  line {i}" for i in range(90))])
    found = explain([failure(0, 1.0, collateral=True), failure(1, 2.0)], {}, Exception("x"))
    shown = Explanation(found.sentence, found.traceback, found.collateral)
    text = screen(shown, training="dapt", last_step=7, checkpoint="/runs/a/step-00000004")
    assert text.startswith("training dapt failed: worker 1 on node node-b failed after step 7")
    assert "Workers that failed only because of it: 0." in text
    assert text.endswith("Last step: 7. Last good checkpoint: /runs/a/step-00000004.")
    from heliostat.train.failure import shorten

    assert len(shorten(long).splitlines()) < 20


def test_the_same_failure_in_a_later_attempt_is_a_habit_but_not_on_another_rank_of_one() -> None:
    monitor = Monitor()
    assert not monitor.begin_attempt().has_habit
    monitor.record_failure(failure(0, 1.0))
    monitor.record_failure(failure(1, 1.0))
    assert not monitor.begin_attempt().has_habit
    monitor.record_failure(failure(1, 2.0, attempt=2))
    assert monitor.begin_attempt().has_habit


def test_losing_peers_twice_is_no_habit() -> None:
    monitor = Monitor()
    for attempt in (1, 2):
        monitor.begin_attempt()
        monitor.record_failure(failure(0, 1.0, collateral=True, attempt=attempt))
    assert not monitor.begin_attempt().has_habit


def test_rows_and_notes_reach_the_driver_once_and_its_wish_the_workers() -> None:
    monitor = Monitor()
    assert not monitor.exchange([{"step": 1.0}], ["a note"])
    news = monitor.drain()
    assert (news.rows, news.notes, news.attempts) == ([{"step": 1.0}], ["a note"], 0)
    assert monitor.drain().rows == []
    monitor.request_stop()
    assert monitor.exchange([], [])
    assert monitor.begin_attempt().is_stopping
