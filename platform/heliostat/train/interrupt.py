"""Ctrl-C and SIGTERM as a wish to stop cleanly; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class StopRequests:
    """While the context is open, the first signal is remembered instead of raised.

    Signals only reach a process's main thread, so elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._count = 0
        self._seen = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def is_new(self) -> bool:
        """Whether a signal came since the last call."""
        is_new = self._count > self._seen
        self._seen = self._count
        return is_new

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            raise KeyboardInterrupt
