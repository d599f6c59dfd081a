"""A rate limit for each key: a token bucket, exact over one replica.

A bucket holds a minute's worth of requests at most and fills evenly. With several replicas each
grants an equal share of the rate, since the proxy spreads requests evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Bucket:
    left: float
    at: float


class RateLimit:
    """Grants requests by key."""

    def __init__(self, requests_per_minute: float, replicas: Callable[[], int] = lambda: 1) -> None:
        """Make a limit.

        Args:
            requests_per_minute: for each key, over all replicas.
            replicas: how many there are now.
        """
        self._per_minute, self._replicas = requests_per_minute, replicas
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, key: str, now: float) -> float:
        """Take a request; 0 when it is granted, else the seconds until one would be.

        Args:
            key: who asks.
            now: a monotonic time, in seconds.
        """
        share = self._per_minute / self._replicas()
        most, per_s = max(1.0, share), share / 60
        bucket = self._buckets.setdefault(key, _Bucket(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.at) * per_s)
        bucket.at = now
        if bucket.left >= 1:
            bucket.left -= 1
            return 0.0
        return (1 - bucket.left) / per_s
