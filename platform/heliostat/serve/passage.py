"""One request on its way through the endpoint, and what is noted of it for the metrics.

The gate begins it. Whoever chooses a version or makes an error, however deep below, notes that on
the request at hand; where there is none, as in a test of one part, nothing is noted.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

NOBODY = "none"


@dataclass
class Passage:
    """A request."""

    request_id: str
    key: str = NOBODY
    """Name of the key that it came with."""
    status: int = 0
    """Of its answer; 0 before it."""
    code: str = ""
    """Of its error; empty without one."""
    version: str = ""
    """The version of the model that it was given to; empty where none was."""
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began


_CURRENT: ContextVar[Passage | None] = ContextVar("passage", default=None)


def begin(passage: Passage) -> None:
    """Make it the request at hand, for this task and those that it starts."""
    _CURRENT.set(passage)


def note_version(version: str) -> None:
    """Say which version the request at hand was given to."""
    passage = _CURRENT.get()
    if passage is not None:
        passage.version = version


def note_code(code: str) -> None:
    """Say with which error the request at hand is answered."""
    passage = _CURRENT.get()
    if passage is not None:
        passage.code = code
