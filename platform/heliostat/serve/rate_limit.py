"""A rate limit for each key: a token bucket, exact over one replica.

A bucket holds a minute's worth of requests at most and fills evenly. With several replicas each
grants an equal share of the rate, since the proxy spreads requests evenly.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Bucket:
    left: float
    at: float


class RateLimit:
    """Grants requests by key."""

    def __init__(self, requests_per_minute: float) -> None:
        self._per_s = requests_per_minute / 60
        self._most = max(1.0, requests_per_minute)
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, key: str, now: float) -> float:
        """Take a request; 0 when it is granted, else the seconds until one would be.

        Args:
            key: who asks.
            now: a monotonic time, in seconds.
        """
        bucket = self._buckets.setdefault(key, _Bucket(self._most, now))
        bucket.left = min(self._most, bucket.left + (now - bucket.at) * self._per_s)
        bucket.at = now
        if bucket.left >= 1:
            bucket.left -= 1
            return 0.0
        return (1 - bucket.left) / self._per_s
