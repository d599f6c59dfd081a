"""What `heliostat estimate` knows about one training, as plain numbers (bytes, FLOPs, seconds)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from heliostat.cluster.compute_rate import ComputeRate
from heliostat.cluster.model_states import ModelState
from heliostat.cluster.placement import Placement
from heliostat.data.reader import BatchPlan
from heliostat.train.config import BatchRampConfig

if TYPE_CHECKING:
    from heliostat.cluster.dry_pass import ParameterCount


@dataclass(frozen=True)
class StageMemory:
    """One worker's memory under one ZeRO stage."""

    stage: int
    state: ModelState
    total: float
    """State on the device, and activations where they are known."""
    fits: bool | None
    """None when the device's memory or the activations are unknown."""


@dataclass(frozen=True)
class Work:
    """Operations of a training."""

    flops_per_step: float
    """Of a step with the whole batch."""
    flops: float
    source: str
    """Counted or computed, and how; for people to read."""


@dataclass(frozen=True)
class Disk:
    """What a training leaves in storage, data apart."""

    checkpoint: float
    """One whole checkpoint."""
    checkpoints_kept: int
    weights: float
    """One export of the weights."""
    weights_kept: int

    @property
    def total(self) -> float:
        """Bytes at the end, and at most 1 checkpoint more while one is replaced."""
        return self.checkpoint * self.checkpoints_kept + self.weights * self.weights_kept


@dataclass(frozen=True)
class FitEstimate:
    """Everything that `heliostat estimate` says about one training."""

    name: str
    parameters: ParameterCount
    batch: BatchPlan
    """Of the steps after the ramp, if there is one."""
    batch_ramp: BatchRampConfig | None
    steps: int | None
    """None when it depends on data that are not prepared yet."""
    precision: str
    stage: int
    """The configured ZeRO stage."""
    memory: tuple[StageMemory, ...]
    activations: float | None
    memory_limit: float | None
    """Memory of a worker's device; on CPUs its share of the node."""
    work: Work | None
    rate: ComputeRate | None
    utilisation: float
    """Share of the rate that the time is reckoned at."""
    seconds: float | None
    disk: Disk
    placement: Placement | None
    refusal: str | None
    """Why the cluster can never place it; None when it can."""
    notes: tuple[str, ...]
    """What could not be known, and why."""
