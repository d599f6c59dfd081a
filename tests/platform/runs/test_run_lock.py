"""Locks: one process at a time, and a dead one does not stand in the way."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from heliostat.errors import Fault
from heliostat.runs.lock import (
    Holder,
    LockTiming,
    RunBusyError,
    acquire_lock,
    is_held,
    read_lock,
)
from heliostat.storage import Location

FAST = LockTiming(beat_s=0.02, stale_s=0.3, settle_s=0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location.of(tmp_path / "run")


def leave(folder: Location, **changes: object) -> Holder:
    """A lock file as another process would have left it."""
    lock, _ = acquire_lock(folder, FAST)
    holder = read_lock(folder)
    lock.release()
    assert holder is not None
    other = replace(holder, token="other", **changes)  # type: ignore[arg-type]
    (folder / "lock.json").write_text(json.dumps(asdict(other)))
    return other


def test_a_held_run_is_refused_until_it_is_released(folder: Location) -> None:
    lock, dead = acquire_lock(folder, FAST)
    assert dead is None
    assert is_held(folder)
    with pytest.raises(RunBusyError, match=rf"worked on by process {os.getpid()} on"):
        acquire_lock(folder, FAST)
    lock.release()
    assert not is_held(folder)
    again, dead = acquire_lock(folder, FAST)
    assert dead is None
    again.release()


def test_the_lock_of_a_dead_process_is_taken_over(
    folder: Location, caplog: pytest.LogCaptureFixture
) -> None:
    free_pid = max(psutil.pids()) + 1000
    left = leave(folder, pid=free_pid)
    assert not is_held(folder)
    lock, dead = acquire_lock(folder, FAST)
    assert dead == left
    assert f"left behind by process {free_pid}" in caplog.text
    lock.release()


def test_a_process_id_that_was_given_out_again_is_not_the_holder(folder: Location) -> None:
    left = leave(folder, started=psutil.Process().create_time() - 3600)
    lock, dead = acquire_lock(folder, FAST)
    assert dead == left
    lock.release()


def test_a_silent_lock_from_another_host_is_taken_over(folder: Location) -> None:
    left = leave(folder, host="elsewhere", beat_at=time.time() + 3600)
    lock, dead = acquire_lock(folder, FAST)
    assert dead == left
    lock.release()


def test_a_beating_lock_from_another_host_is_respected_whatever_its_clock(folder: Location) -> None:
    left = leave(folder, host="elsewhere", beat_at=time.time() - 300)
    done = threading.Event()

    def beat() -> None:
        count = 0
        while not done.wait(0.02):
            count += 1
            (folder / "lock.json").write_text(json.dumps(asdict(replace(left, beat=count))))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(RunBusyError, match="elsewhere"):
        acquire_lock(folder, LockTiming(stale_s=5))
    done.set()
    thread.join()


def test_only_one_of_many_takes_a_stale_lock(folder: Location) -> None:
    leave(folder, pid=max(psutil.pids()) + 1000)
    taken: list[object] = []
    refused: list[Exception] = []

    def take() -> None:
        try:
            taken.append(acquire_lock(folder, FAST)[0])
        except RunBusyError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert len(refused) == 7
    taken[0].release()  # type: ignore[attr-defined]


def test_a_holder_that_was_taken_over_notices_and_leaves_the_new_lock_alone(
    folder: Location,
) -> None:
    lock, _ = acquire_lock(folder, FAST)
    mine = read_lock(folder)
    assert mine is not None
    other = replace(mine, host="elsewhere", pid=1, token="other")

    def take_over_until_noticed() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            # Again and again: a heartbeat that had just looked may have written over the first.
            (folder / "lock.json").write_text(json.dumps(asdict(other)))
            lock.check()

    with pytest.raises(Fault, match="taken over by process 1 on elsewhere"):
        take_over_until_noticed()
    lock.release()
    kept = read_lock(folder)
    assert kept is not None
    assert kept.token == "other"


def test_a_holder_beats(folder: Location) -> None:
    lock, _ = acquire_lock(folder, FAST)
    deadline = time.monotonic() + 10
    seen = read_lock(folder)
    while seen is not None and seen.beat < 2 and time.monotonic() < deadline:
        seen = read_lock(folder)
    assert seen is not None
    assert seen.beat >= 2
    lock.release()
