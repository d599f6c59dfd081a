"""What the driver sends to every worker, and what rank 0 sends back."""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.storage import Location
from heliostat.train.config import FitConfig
from heliostat.train.monitor_handle import MonitorHandle
from heliostat.train.task import Task


@dataclass(frozen=True)
class FitSpec:
    """One training, complete: pickled to the workers, so it holds paths and numbers only."""

    task: Task
    config: FitConfig
    folder: Location
    """Where checkpoints, weights and metrics go."""
    start_from: Location | None
    """Folder with `model.safetensors` to start from; null: the task's own initial weights."""
    digest: str
    """Hash of the task and the config; a checkpoint of another training is refused."""
    steps: int
    """Optimiser steps in all."""
    gpus_per_worker: float
    may_lose_nodes: bool
    """Whether nodes can be taken away meanwhile; not on a cluster that the driver started."""
    expert_parallel: int | None
    """Workers that share one copy of the experts."""
    expert_timeout_s: float
    """How long one of them waits for the others."""
    monitor: MonitorHandle
    is_judged: bool = False
    """Whether to wait for a verdict after each evaluation (`judge.py`)."""
    saves_to_be_judged: bool = False
    """Whether to commit a checkpoint of the evaluation before."""
    branch_from: Location | None = None
    """A committed checkpoint of another training to go on from, while there is none of our own."""

    @property
    def checkpoints(self) -> Location:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def evaluate_every(self) -> int:
        """Optimiser steps between evaluations."""
        return self.config.evaluation.every or max(1, self.steps // 10)

    @property
    def checkpoint_every(self) -> int:
        """Optimiser steps between checkpoints."""
        return self.config.checkpoint.every or max(1, self.steps // 10)


@dataclass(frozen=True)
class Outcome:
    """How a worker group ended when it did not die: what the train function returns."""

    status: str
    """`finished`, `early`, `stopped` or `not begun` (on request; can go on), `failed`, or
    `repeated` (the same failure came again)."""
    step: int
    saved_step: int | None = None
    """Step of the newest committed checkpoint."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last evaluation."""
    best_step: int | None = None
    counts: dict[str, float] = field(default_factory=dict)
    """Targets trained on, by kind."""
    trained_s: float = 0.0
    """Seconds in training steps, over all attempts, restarts left out."""
    stalled_s: float = 0.0
    """Of these, seconds that training stood still for checkpoints, in the last attempt."""
    attempts: int = 1
    peak_memory_bytes: int = 0
    """Largest resident memory of a worker (of the device, on a GPU)."""
    message: str = ""
    """Why it failed, in one sentence."""
