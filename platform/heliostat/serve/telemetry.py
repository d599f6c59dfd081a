"""Metrics of an endpoint, for Prometheus through Ray's metrics agent."""

from __future__ import annotations

import threading
import time
from collections import Counter as Counts
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

from heliostat.serve.passage import Passage

if TYPE_CHECKING:
    from heliostat.serve.generation.request import Finished

LATENCIES_S = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
HANDED_OVER_EVERY_S = 0.5
REQUEST_TAGS = ("route", "status", "code", "key", "version")


class Telemetry:
    """The metrics of one replica.

    Ray's metrics take a lock outside of Python, and whoever gives Python's own lock up for it waits
    behind the model's thread to get it back. So answers are noted here, and a thread hands them
    over.
    """

    def __init__(self, endpoint: str) -> None:
        tags = {"endpoint": endpoint}
        self._requests = Counter(
            "heliostat_serve_requests",
            "Answered requests.",
            tag_keys=("endpoint", *REQUEST_TAGS),
        )
        self._latency = Histogram(
            "heliostat_serve_latency_s",
            "Seconds from the request to its answer.",
            boundaries=LATENCIES_S,
            tag_keys=("endpoint", "route", "version"),
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
        self._generation = GenerationMetrics.of(endpoint)
        for metric in (
            *(self._requests, self._latency, self._batch, self._waiting),
            *(self._computed, self._shadow, self._agreement),
        ):
            metric.set_default_tags(tags)
        self._answered: Counts[tuple[str, ...]] = Counts()
        self._seconds: list[tuple[str, str, float]] = []
        self._queued = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._hand_over, name="telemetry", daemon=True).start()

    def request(self, route: str, passage: Passage) -> None:
        """Count an answer. `route` must be a path of the API, not one that a client made up."""
        tags = (route, str(passage.status), passage.code, passage.key, passage.version)
        with self._lock:
            self._answered[tags] += 1
            self._seconds.append((route, passage.version, passage.seconds))

    def batch(self, size: int, *, version: str) -> None:
        """Count a batch."""
        self._batch.observe(size, tags={"version": version})
        self._computed.inc(size, tags={"version": version})

    def waiting(self, requests: int) -> None:
        """Note the length of the queue."""
        self._queued = requests

    def _hand_over(self) -> None:
        while True:
            time.sleep(HANDED_OVER_EVERY_S)
            with self._lock:
                answered, self._answered = self._answered, Counts()
                waited, self._seconds = self._seconds, []
            for tags, number in answered.items():
                self._requests.inc(number, dict(zip(REQUEST_TAGS, tags, strict=True)))
            for route, version, seconds in waited:
                self._latency.observe(seconds, {"route": route, "version": version})
            self._waiting.set(self._queued)

    def shadow(self, outcome: str, agreement: float = 0.0) -> None:
        """Count a copy for the shadow: `compared`, `failed` or `dropped`."""
        self._shadow.inc(1, tags={"outcome": outcome})
        if agreement > 0:
            self._agreement.inc(agreement)

    def generation(self, version: str) -> GenerationTelemetry:
        """Counts what the engines of a version do."""
        return GenerationTelemetry(self._generation, version)


@dataclass(frozen=True)
class GenerationMetrics:
    """The metrics of generation engines; endpoints that only batch leave them empty."""

    completions: Counter
    tokens: Counter
    first_token: Histogram
    between_tokens: Histogram
    pages: Gauge
    full: Gauge

    @classmethod
    def of(cls, endpoint: str) -> GenerationMetrics:
        """Make them."""
        versioned = ("endpoint", "version")
        metrics = cls(
            completions=Counter(
                "heliostat_serve_completions",
                "Requests to a generation engine that are over.",
                tag_keys=(*versioned, "reason"),
            ),
            tokens=Counter(
                "heliostat_serve_tokens",
                "Tokens of completed requests: of prompts, of prompts but not computed again, new.",
                tag_keys=(*versioned, "kind"),
            ),
            first_token=Histogram(
                "heliostat_serve_first_token_s",
                "Seconds from the request to its first token, waiting included.",
                boundaries=LATENCIES_S,
                tag_keys=versioned,
            ),
            between_tokens=Histogram(
                "heliostat_serve_between_tokens_s",
                "Seconds from one token of a request to its next, a mean for each request.",
                boundaries=LATENCIES_S,
                tag_keys=versioned,
            ),
            pages=Gauge(
                "heliostat_serve_cache_pages_held",
                "Pages of the cache that requests hold.",
                tag_keys=versioned,
            ),
            full=Gauge("heliostat_serve_cache_pages", "Pages of the cache.", tag_keys=versioned),
        )
        for metric in (
            *(metrics.completions, metrics.tokens, metrics.first_token),
            *(metrics.between_tokens, metrics.pages, metrics.full),
        ):
            metric.set_default_tags({"endpoint": endpoint})
        return metrics


@dataclass(frozen=True)
class GenerationTelemetry:
    """Hears the engines of one version."""

    metrics: GenerationMetrics
    version: str

    def ended(self, end: Finished) -> None:
        """Count a request that is over."""
        tags = {"version": self.version}
        self.metrics.completions.inc(1, tags={**tags, "reason": end.reason})
        kinds = {
            "prompt": end.prompt_tokens,
            "reused": end.reused_tokens,
            "new": end.completion_tokens,
        }
        for kind, count in kinds.items():
            if count:
                self.metrics.tokens.inc(count, tags={**tags, "kind": kind})
        if end.completion_tokens:
            first_s = end.timing.queue_s + end.timing.prefill_s
            self.metrics.first_token.observe(first_s, tags=tags)
        if end.completion_tokens > 1:
            between_s = end.timing.decode_s / (end.completion_tokens - 1)
            self.metrics.between_tokens.observe(between_s, tags=tags)

    def pages(self, held: int, pages: int) -> None:
        """Note how full the pool is."""
        self.metrics.pages.set(held, tags={"version": self.version})
        self.metrics.full.set(pages, tags={"version": self.version})
