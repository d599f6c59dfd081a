"""Two sections that every job's config has: what a run asks of the cluster, and its tracker.

Neither decides the result (up to the order of summation), so both may differ when a run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.config.int_range import IntRange
from heliostat.errors import ConfigError

ONE = IntRange(1, 1)
PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass(frozen=True)
class ResourcesConfig:
    """What a run asks of the cluster; a worker is one process, one rank."""

    workers: IntRange = ONE
    """Training workers: a number, or [lowest, highest] for an elastic run."""
    gpus_per_worker: int = field(default=0, metadata={"choices": (0, 1)})
    """GPUs of a worker: 1, or 0 to train on the CPU."""
    cpus_per_worker: float = 1.0
    """CPU cores of a worker."""
    memory_per_worker_gb: float | None = None
    """Host memory reserved for a worker, in GB (1e9 bytes); null: nothing is reserved."""
    accelerator_type: str | None = None
    """Kind of GPU, by Ray's name, such as H100 or A100-80G; null: any."""
    expert_parallel: int | None = None
    """Consecutive workers that share one copy of a model's experts; null: experts are weights like
    any other. Any number may follow another when a run goes on, but null only null."""
    expert_timeout_s: float = 300.0
    """Seconds that a worker waits for those it shares experts with before it fails."""
    placement: str = field(default="PACK", metadata={"choices": PLACEMENTS})
    """Whether workers are packed on few nodes or spread over many; STRICT_ makes it a must."""

    def __post_init__(self) -> None:
        if self.workers.low < 1:
            raise ConfigError(f"workers is {self.workers}, but at least 1 is needed")
        if self.cpus_per_worker <= 0:
            raise ConfigError(f"cpus_per_worker is {self.cpus_per_worker:g}; it must be above 0")
        if self.memory_per_worker_gb is not None and self.memory_per_worker_gb <= 0:
            raise ConfigError(
                f"memory_per_worker_gb is {self.memory_per_worker_gb:g}; "
                "it must be above 0, or null"
            )
        shared = self.expert_parallel
        if shared is not None and shared < 1:
            raise ConfigError(f"expert_parallel is {shared}, but it must be 1 or more, or null")
        if self.expert_timeout_s <= 0:
            raise ConfigError(f"expert_timeout_s is {self.expert_timeout_s:g}; it must be above 0")
        for count in range(self.workers.low, self.workers.high + 1):
            if shared is not None and count % shared:
                raise ConfigError(
                    f"expert_parallel is {shared}, which does not divide workers = {count}"
                )
        if self.accelerator_type is not None and self.gpus_per_worker == 0:
            raise ConfigError(
                f"accelerator_type is {self.accelerator_type} while gpus_per_worker is 0: "
                "set gpus_per_worker to 1, or accelerator_type to null"
            )


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics and models are recorded besides the run folder (MLflow)."""

    enabled: bool = True
    """Record the run in the tracker; its failure never fails the run."""
    uri: str | None = None
    """The tracker's address; null: MLFLOW_TRACKING_URI, else an SQLite file beside the runs."""
    experiment: str | None = None
    """The experiment's name; null: the job's name."""
