"""Points in time as people read them: ISO 8601 in UTC, to the millisecond."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> str:
    """The time now."""
    return at(time.time())


def at(epoch_s: float) -> str:
    """The point in time so many seconds after 1970 began."""
    moment = datetime.fromtimestamp(epoch_s, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_between(start: str, end: str) -> float:
    """Seconds from one point in time to another; never below 0."""
    span = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    return max(0.0, span.total_seconds())
