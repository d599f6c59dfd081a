"""Several trainings at a time: a grid, an ensemble, the seeds of a claim.

Each training is a stage of its run, so what is finished is only read when the run goes on; Ray
places as many at a time as fit. The wish to stop reaches all of them, and after the first error
nothing new begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar, cast

from heliostat.train.interrupt import StopRequests

POLL_S = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], *, at_a_time: int
) -> list[Result]:
    """`work` of every item in threads, results in the order of the items.

    Call it from the main thread: Ctrl-C and SIGTERM then stop every training under way with a
    checkpoint (`fit` raises Interrupted). The first error is raised when those that had begun have
    ended; items that had not begun never do.
    """
    is_over = threading.Event()

    def begin(item: Item) -> Result | _NotBegun:
        if is_over.is_set():
            return _NotBegun()
        try:
            return work(item)
        except BaseException:
            is_over.set()
            raise

    with StopRequests(), ThreadPoolExecutor(at_a_time, "in-parallel") as pool:
        try:
            futures = [pool.submit(begin, item) for item in items]
            # A signal that the system hands to another thread does not end a wait: look often.
            while wait(futures, POLL_S).not_done:
                pass
        finally:
            # Also when a second Ctrl-C ends the waiting; leaving the pool waits for what has begun.
            is_over.set()
    for future in futures:
        if (error := future.exception()) is not None:
            raise error
    return [cast(Result, future.result()) for future in futures]


class _NotBegun:
    """In the place of a result where an error came first."""
