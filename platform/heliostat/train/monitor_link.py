"""Rank 0's link to the monitor: a thread of its own, so that the training loop never waits."""

from __future__ import annotations

import logging
import threading
import time

from heliostat.train.monitor import Monitor, Row
from heliostat.train.monitor_handle import MonitorHandle

logger = logging.getLogger(__name__)

EXCHANGE_EVERY_S = 0.5
"""Often enough for a person who waits; a small machine trains on the cores that this costs."""
ASK_EVERY_S = 0.03
UNSENT_ROWS = 10_000
"""Kept while the driver cannot be reached."""


class MonitorLink:
    """Rows go out and the wish to stop comes in."""

    def __init__(self, monitor: MonitorHandle) -> None:
        self._monitor = monitor
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._closing = threading.Event()
        self.is_stopping = False
        self._thread = threading.Thread(target=self._run, name="monitor-link", daemon=True)
        self._thread.start()

    def send(self, row: Row) -> None:
        """Queue a row of metrics."""
        with self._lock:
            self._rows.append(row)

    def note(self, text: str) -> None:
        """Queue a line for the user."""
        with self._lock:
            self._notes.append(text)

    def ask(self, step: int) -> bool:
        """Wait for the verdict on the evaluation at `step`: whether to stop."""
        self._exchange()
        while (stops := self._monitor.call(Monitor.verdict, step)) is None:
            time.sleep(ASK_EVERY_S)
        return stops

    def close(self) -> None:
        """Send what is left and stop the thread."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closing.wait(EXCHANGE_EVERY_S):
            self._exchange()
        self._exchange()

    def _exchange(self) -> None:
        # Whoever asks for a verdict must not overtake the rows that it is about.
        with self._sending:
            self._send_queued()

    def _send_queued(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
            notes, self._notes = self._notes, []
        try:
            self.is_stopping = self._monitor.call(Monitor.exchange, rows, notes)
        except Exception as error:
            # Training does not depend on being watched; the rows are also kept with checkpoints.
            logger.warning("the driver could not be reached: %s", error)
            with self._lock:
                self._rows = [*rows, *self._rows][-UNSENT_ROWS:]
                self._notes = [*notes, *self._notes][-UNSENT_ROWS:]
