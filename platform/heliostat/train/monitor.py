"""What driver and workers tell each other: metrics one way, a wish to stop the other.

The monitor outlives worker groups, so it also remembers why workers failed: when they are started
again and fail in the same way at the same step, there is no point in a third start. It is called
through `monitor_handle`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

Row = dict[str, float]


@dataclass(frozen=True)
class WorkerFailure:
    """An exception in one worker."""

    # `at` comes from the clocks of several nodes: it only orders what is close to simultaneous.

    attempt: int
    rank: int
    node: str
    step: int
    kind: str
    message: str
    traceback: str
    is_collateral: bool = False
    """Whether the worker only lost its peers."""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Attempt:
    """What a start of the workers is told."""

    number: int
    """1 for the first."""
    is_stopping: bool
    """Whether the user has asked to stop."""
    has_habit: bool
    """Whether workers have failed in the same way at the same step before."""


@dataclass(frozen=True)
class News:
    """What the driver has not seen yet."""

    rows: list[Row]
    notes: list[str]
    attempts: int
    """Starts of the workers so far."""
    waiting: int | None = None
    """The step whose evaluation waits for a verdict."""


class Monitor:
    """State shared by the driver and the workers of one training."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._failures: list[WorkerFailure] = []
        self._is_stopping = False
        self._attempts = 0
        self._waiting: int | None = None
        self._verdict: tuple[int, bool] | None = None

    def exchange(self, rows: list[Row], notes: list[str]) -> bool:
        """Take rank 0's news; returns whether training should stop."""
        self._rows += rows
        self._notes += notes
        return self._is_stopping

    def drain(self) -> News:
        """Give the driver what came since the last call."""
        rows, self._rows = self._rows, []
        notes, self._notes = self._notes, []
        return News(rows, notes, self._attempts, self._waiting)

    def verdict(self, step: int) -> bool | None:
        """Whether the training stops after the evaluation at `step`; None: not decided yet."""
        if self._is_stopping:
            return True
        if self._verdict is not None and self._verdict[0] == step:
            stops = self._verdict[1]
            self._verdict = self._waiting = None
            return stops
        self._waiting = step
        return None

    def decide(self, step: int, stops: bool) -> None:
        """Give the verdict on the evaluation at `step`."""
        self._verdict, self._waiting = (step, stops), None

    def request_stop(self) -> None:
        """Ask training to save and stop at the next step."""
        self._is_stopping = True

    def begin_attempt(self) -> Attempt:
        """Count a start of the workers, and say whether there is a point in it."""
        self._attempts += 1
        # Who waited is gone; the evaluation will be done, and judged, again.
        self._waiting = self._verdict = None
        first: dict[tuple[int, str, str], int] = {}
        # Ranks of one attempt may well fail alike; only a later attempt makes it a habit.
        has_habit = any(
            first.setdefault((failure.step, failure.kind, failure.message), failure.attempt)
            != failure.attempt
            for failure in self._failures
            if not failure.is_collateral
        )
        return Attempt(self._attempts, self._is_stopping, has_habit)

    def record_failure(self, failure: WorkerFailure) -> None:
        """Remember why a worker failed."""
        self._failures.append(failure)

    def failures(self) -> list[WorkerFailure]:
        """All failures so far, oldest first."""
        return self._failures
