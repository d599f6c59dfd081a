"""A value that is read from a file, and read again while the endpoint runs.

Whoever takes a key away, or retires a template, does not have to replace replicas for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class Watched(Generic[Value]):
    """Reads at once, and then again every so often; what cannot be read leaves the last value."""

    def __init__(self, read: Callable[[], Value], every_s: float, name: str) -> None:
        """Read for the first time.

        Args:
            read: gives the value; what it raises here is the caller's.
            every_s: seconds between two readings.
            name: of what is read, for the log.
        """
        self._read, self._every_s, self._name = read, every_s, name
        self._value = read()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch {name}", daemon=True)
        self._thread.start()

    def __call__(self) -> Value:
        """The value, as it was read last."""
        return self._value

    def close(self) -> None:
        """Read no more."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        is_readable = True
        while not self._closing.wait(self._every_s):
            try:
                self._value = self._read()
                is_readable = True
            except Exception as error:
                if is_readable:
                    logger.warning(
                        "%s cannot be read now (%s); what was read last still holds",
                        self._name,
                        type(error).__name__,
                    )
                is_readable = False
