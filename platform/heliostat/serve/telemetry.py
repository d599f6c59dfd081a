"""Metrics of an endpoint, for Prometheus through Ray's metrics agent."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

LATENCIES_S = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


class Telemetry:
    """The metrics of one replica."""

    def __init__(self, endpoint: str) -> None:
        tags = {"endpoint": endpoint}
        self._requests = Counter(
            "heliostat_serve_requests",
            "Answered requests.",
            tag_keys=("endpoint", "route", "status", "key"),
        )
        self._latency = Histogram(
            "heliostat_serve_latency_s",
            "Seconds from the request to its answer.",
            boundaries=LATENCIES_S,
            tag_keys=("endpoint", "route"),
        )
        self._batch = Histogram(
            "heliostat_serve_batch_items",
            "Requests that were computed together.",
            boundaries=SIZES,
            tag_keys=("endpoint", "version"),
        )
        # Ray's histograms sum the middles of their buckets: an exact count is a counter.
        self._computed = Counter(
            "heliostat_serve_computed",
            "Requests that a version computed.",
            tag_keys=("endpoint", "version"),
        )
        self._waiting = Gauge(
            "heliostat_serve_waiting",
            "Requests that wait for the model.",
            tag_keys=("endpoint",),
        )
        self._shadow = Counter(
            "heliostat_serve_shadow",
            "Copies of requests for the shadow.",
            tag_keys=("endpoint", "outcome"),
        )
        self._agreement = Counter(
            "heliostat_serve_shadow_agreement",
            "Sum of the agreements, 0 to 1 each, of the copies that were compared.",
            tag_keys=("endpoint",),
        )
        for metric in (
            *(self._requests, self._latency, self._batch, self._waiting),
            *(self._computed, self._shadow, self._agreement),
        ):
            metric.set_default_tags(tags)

    def request(self, route: str, status: int, key: str, seconds: float) -> None:
        """Count an answer. `route` must be a path of the API, not one that a client made up."""
        self._requests.inc(1, tags={"route": route, "status": str(status), "key": key})
        self._latency.observe(seconds, tags={"route": route})

    def batch(self, size: int, *, version: str) -> None:
        """Count a batch."""
        self._batch.observe(size, tags={"version": version})
        self._computed.inc(size, tags={"version": version})

    def waiting(self, requests: int) -> None:
        """Note the length of the queue."""
        self._waiting.set(requests)

    def shadow(self, outcome: str, agreement: float = 0.0) -> None:
        """Count a copy for the shadow: `compared`, `failed` or `dropped`."""
        self._shadow.inc(1, tags={"outcome": outcome})
        if agreement > 0:
            self._agreement.inc(agreement)
