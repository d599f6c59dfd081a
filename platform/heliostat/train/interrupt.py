"""Ctrl-C and SIGTERM as a wish to stop cleanly; a second Ctrl-C stops at once.

Signals only reach a process's main thread. Whoever trains from other threads holds a `StopRequests`
open in the main thread meanwhile: every training of the process then hears of the signal, those
that begin after it included.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class _Process:
    """Signal handlers belong to the process, so what they count does too."""

    signals = 0
    """How often it was asked to stop."""
    handled_from = 0
    """That number when the outermost context of the main thread was opened."""
    open_contexts = 0
    """Contexts open in the main thread."""


class StopRequests:
    """While the context is open, the first signal is remembered instead of raised."""

    def __init__(self) -> None:
        self._seen = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            if not _Process.open_contexts:
                _Process.handled_from = _Process.signals
            _Process.open_contexts += 1
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, _handle)
        self._seen = _Process.handled_from if _Process.open_contexts else _Process.signals
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _Process.open_contexts -= bool(self._previous)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def is_new(self) -> bool:
        """Whether a signal came since the last call."""
        is_new = _Process.signals > self._seen
        self._seen = _Process.signals
        return is_new


def _handle(number: int, frame: FrameType | None) -> None:
    _Process.signals += 1
    if _Process.signals - _Process.handled_from > 1:
        raise KeyboardInterrupt
