"""What a user can say about an endpoint: the section `serve` of a job's config.

Versions and their shares are not here: they change while the endpoint runs (`lineup.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.config.contract import JobConfig
from heliostat.config.int_range import IntRange
from heliostat.errors import ConfigError

OFF = "off"


@dataclass(frozen=True)
class LimitsConfig:
    """What one client, and all together, may ask."""

    body_mb: float = 2.0
    """Largest body, megabytes of 10**6 bytes."""
    request_s: float = 10.0
    """Longest time for an answer, seconds; then 504."""
    queue: int = 64
    """Requests of a replica that may wait for the model; one more is answered with 503."""
    answer_ms: float = 500.0
    """A request whose answer is foretold by the last batches to take longer than this, in
    milliseconds, is answered with 503, unless no other waits."""
    requests_per_minute: float | None = 6000.0
    """For each key, over all replicas; null, or without keys: no limit."""
    load_s: float = 180.0
    """Longest time for loading bundles, seconds; then what ran before goes on."""

    def __post_init__(self) -> None:
        for name in ("body_mb", "request_s", "queue", "answer_ms", "load_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise ConfigError(
                f"requests_per_minute is {self.requests_per_minute}; expected a number above 0, "
                "or null for no limit"
            )


@dataclass(frozen=True)
class BatchingConfig:
    """How requests are computed together."""

    items: int = 16
    """Largest batch."""
    tokens: int = 16384
    """Most tokens of a batch, padding aside."""
    wait_ms: float = 5.0
    """Longest wait for a batch to fill, milliseconds."""

    def __post_init__(self) -> None:
        if self.items < 1 or self.tokens < 1 or self.wait_ms < 0:
            raise ConfigError(
                f"items is {self.items}, tokens is {self.tokens} and wait_ms is {self.wait_ms}; "
                "expected at least 1, 1 and 0"
            )


@dataclass(frozen=True)
class HttpConfig:
    """Where the endpoint listens."""

    host: str = "127.0.0.1"
    """Address; 0.0.0.0 for all interfaces."""
    port: int = 8000
    """Port of the proxy."""
    haproxy: bool = True
    """Let HAProxy, where it is installed, take the place of Ray's Python proxy; on a cluster of
    one's own only."""
    access_log: bool = False
    """A line for each request in the log of the replica."""
    tls_key: str | None = None
    """PEM file with the private key; with `tls_certificate`, the endpoint speaks HTTPS."""
    tls_certificate: str | None = None
    """PEM file with the certificate chain."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65_536:
            raise ConfigError(f"port is {self.port}; expected 1 to 65535")
        if (self.tls_key is None) != (self.tls_certificate is None):
            raise ConfigError("give tls_key and tls_certificate, or neither")


@dataclass(frozen=True)
class ServeConfig:
    """An endpoint."""

    keys: str = field(default="keys.json", metadata={"is_served_path": True})
    """File with the hashed keys (heliostat serve key NAME); `off` lets everybody in."""
    replicas: IntRange = field(default_factory=lambda: IntRange(1, 1))
    """Replicas; a range scales with the load."""
    target_ongoing_requests: float = 8.0
    """Requests in flight that one replica should have, where replicas scale."""
    surge: bool = True
    """Start a new replica before an old one stops, where a change replaces replicas; needs room for
    one more. Without it requests wait while the only replica is replaced."""
    cpus_per_replica: float = 1.0
    """CPUs of a replica; the model computes with as many threads."""
    gpus_per_replica: float = 0.0
    """GPUs of a replica."""
    events: str = field(default="events.db", metadata={"is_served_path": True})
    """Database of predictions and feedback: a file, or a URL that SQLAlchemy knows where replicas
    are on several machines."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """Sizes, times and rates."""
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    """Dynamic batching."""
    http: HttpConfig = field(default_factory=HttpConfig)
    """Where it listens."""

    def __post_init__(self) -> None:
        if self.replicas.low < 1:
            raise ConfigError(f"replicas is {self.replicas}; expected at least 1")
        if self.cpus_per_replica <= 0 or self.gpus_per_replica < 0:
            raise ConfigError(
                f"cpus_per_replica is {self.cpus_per_replica} and gpus_per_replica is "
                f"{self.gpus_per_replica}; expected above 0, and 0 or more"
            )

    @property
    def device(self) -> str:
        """Where models compute: a replica without a GPU of its own must not take another's."""
        return "cuda" if self.gpus_per_replica else "cpu"


def serve_config(config: JobConfig) -> ServeConfig:
    """The section `serve` of a job's config."""
    found = getattr(config, "serve", None)
    if not isinstance(found, ServeConfig):
        raise ConfigError("this job has no section serve in its config, so it has no endpoint")
    return found
