"""The experiment tracker, fed by a thread so that training never waits for it.

A `Tracker` takes metrics, tags and models into a bounded queue and returns at once. Its thread
opens the session with MLflow and delivers. When the tracker is away this is said once, deliveries
are tried again with growing pauses, and the oldest entries go when the queue is full: the run
folder has every metric in any case.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from heliostat.runs.mlflow_session import (
    MetricPoint,
    Session,
    TrackedRun,
    open_session,
    refuses,
)
from heliostat.runs.tracker_address import without_credentials
from heliostat.storage import Location

logger = logging.getLogger(__name__)

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_BATCH = 1000

Call = Callable[[Session], None]
"""Anything to deliver but a metric."""


@dataclass(frozen=True)
class TrackerTiming:
    """How patient the tracker's thread is."""

    retry_s: float = 1.0
    """Pause after the first failed delivery; it doubles with every further one."""
    longest_retry_s: float = 60.0
    request_s: int = 10
    """Time limit of one request to a server."""
    queue: int = 50_000
    """Entries kept while the tracker is away."""
    collect_s: float = 5.0
    """Time between two deliveries: each is a transaction or a request, whatever it holds."""


DEFAULT_TIMING = TrackerTiming()


class Tracker:
    """One tracked run; every method but `finish` returns at once, and none ever raises."""

    def __init__(self, target: TrackedRun, timing: TrackerTiming = DEFAULT_TIMING) -> None:
        self._target = target
        self._timing = timing
        self._place = without_credentials(target.uri)
        self._queue: deque[MetricPoint | Call] = deque()
        self._dropped = 0
        self._delivered_at = -math.inf
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._deliver_all, name="tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step."""
        now = int(time.time() * 1000)
        self._put(MetricPoint(name, float(value), step, now) for name, value in metrics.items())

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the tracked run."""
        self._put([lambda session: session.tag(tags)])

    def register(self, model: str, source: Location, tags: Mapping[str, str]) -> None:
        """Add a version of a model to the model registry."""
        self._put([lambda session: session.register(model, source, tags)])

    def finish(self, status: str, files: Sequence[Path] = (), limit_s: float = 60.0) -> None:
        """Deliver what is queued, end the tracked run and attach small files to it.

        Waits for `limit_s` at most; a tracker that is away gets one more try.
        """
        self._put([lambda session: session.end(_STATUS[status])])
        for file in files:
            self._put([lambda session, file=file: session.attach(file)])  # type: ignore[misc]
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(limit_s)
        missing = self._dropped + len(self._queue)
        if missing or self._thread.is_alive():
            logger.warning(
                "the tracker at %s did not get %d entries of run %s; the run folder has them all",
                self._place,
                missing,
                self._target.run_id,
            )

    def _put(self, entries: Iterable[MetricPoint | Call]) -> None:
        with self._changed:
            for entry in entries:
                if len(self._queue) >= self._timing.queue:
                    self._queue.popleft()
                    self._dropped += 1
                self._queue.append(entry)
            self._changed.notify_all()

    def _deliver_all(self) -> None:
        session: Session | None = None
        failures = 0
        while batch := self._next_batch():
            try:
                session = session or open_session(self._target, self._timing.request_s)
                _deliver(session, batch)
            # Whatever a tracker raises, training goes on; the run folder has what it does not get.
            except Exception as error:
                if session is not None and refuses(error):
                    self._drop(batch, error)
                    continue
                failures += 1
                if failures == 2:
                    self._say_away(error)
                self._put_back(batch)
                if not self._pause(failures):
                    return
                continue
            if failures >= 2:
                logger.warning("the tracker at %s is back", self._place)
            failures = 0
            self._delivered_at = time.monotonic()

    def _next_batch(self) -> list[MetricPoint | Call]:
        """Metrics up to a request's size, or one call; waits for some, empty at the very end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            due_s = self._delivered_at + self._timing.collect_s - time.monotonic()
            self._changed.wait_for(self._is_pressing, timeout=max(0.0, due_s))
            batch: list[MetricPoint | Call] = []
            while self._queue and len(batch) < _BATCH:
                if not isinstance(self._queue[0], MetricPoint):
                    return batch or [self._queue.popleft()]
                batch.append(self._queue.popleft())
            return batch

    def _is_pressing(self) -> bool:
        """Whether what is queued should not wait for more."""
        return self._closing or len(self._queue) >= _BATCH

    def _put_back(self, batch: list[MetricPoint | Call]) -> None:
        with self._changed:
            room = self._timing.queue - len(self._queue)
            kept = batch[-room:] if room > 0 else []
            self._dropped += len(batch) - len(kept)
            self._queue.extendleft(reversed(kept))

    def _drop(self, batch: list[MetricPoint | Call], error: Exception) -> None:
        self._dropped += len(batch)
        logger.warning("the tracker at %s refused an entry: %s", self._place, _one_line(error))

    def _pause(self, failures: int) -> bool:
        """Wait before the next try; False when the run is over and the tracker still away."""
        pause = min(self._timing.longest_retry_s, self._timing.retry_s * 2.0 ** (failures - 1))
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=pause)
            return not self._closing or failures < 2

    def _say_away(self, error: Exception) -> None:
        logger.warning(
            "the tracker at %s is away (%s); training goes on and keeps its metrics in the run "
            "folder",
            self._place,
            _one_line(error),
        )


def _deliver(session: Session, batch: Sequence[MetricPoint | Call]) -> None:
    points = [entry for entry in batch if isinstance(entry, MetricPoint)]
    if points:
        session.log(points)
    for entry in batch:
        if not isinstance(entry, MetricPoint):
            entry(session)


def _one_line(error: Exception) -> str:
    return without_credentials(" ".join(str(error).split()))[:200]
