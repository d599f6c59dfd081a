"""What a user can say about one call of `fit`: a typed section of every job's config.

Two batch figures are given, `batch` (the global one, in samples) and `micro_batch` (what one device
holds at a time); accumulation follows from them and the number of workers. With `batch_ramp` the
first steps have smaller batches (`batch_schedule.py`). Everything here is plain data and cheap to
import; combinations that cannot work are refused on construction, before Ray starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heliostat.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp16")
DECAYS = ("cosine", "linear", "constant", "milestones")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser; torch's own implementations, so no compiler is needed."""

    name: str = field(default="adamw", metadata={"choices": OPTIMIZERS})
    """Which optimiser."""
    lr: float = 1e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the first moment (the momentum, for sgd)."""
    beta2: float = 0.95
    """Decay of the second moment; unused by sgd."""
    eps: float = 1e-8
    """Added to the root of the second moment; unused by sgd."""
    weight_decay: float = 0.01
    """Decoupled weight decay; not applied to biases and normalisation weights."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}, but a learning rate is above 0")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ConfigError(f"{name} is {beta}, but it must be in [0, 1)")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over optimiser steps: linear warm-up, then a decay (`schedule.lr_factor`)."""

    decay: str = field(default="cosine", metadata={"choices": DECAYS})
    """Shape after the warm-up."""
    warmup_fraction: float = 0.01
    """Warm-up as a share of all optimiser steps, rounded up; ignored when warmup_steps is given."""
    warmup_steps: int | None = None
    """Warm-up in optimiser steps."""
    final_fraction: float = 0.0
    """Learning rate at the last step as a share of the peak, for cosine and linear."""
    milestones: list[float] = field(default_factory=list)
    """Shares of the run after which the rate is multiplied by milestone_factor."""
    milestone_factor: float = 0.316
    """Factor at each milestone."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"warmup_fraction is {self.warmup_fraction}, but a share is in [0, 1)"
            )
        if (self.decay == "milestones") != bool(self.milestones):
            raise ConfigError(
                f"decay is {self.decay} and milestones is {self.milestones}: "
                "milestones are given exactly when decay is `milestones`"
            )


@dataclass(frozen=True)
class ZeroConfig:
    """How DeepSpeed shards the training state over workers (Rajbhandari et al. 2020)."""

    stage: int = field(default=0, metadata={"choices": (0, 1, 2, 3)})
    """0 nothing, 1 optimiser state, 2 and gradients, 3 and parameters."""
    offload_optimizer: bool = False
    """Keep optimiser state and its step in host memory."""
    offload_parameters: bool = False
    """Keep parameters in host memory (stage 3)."""

    def __post_init__(self) -> None:
        if self.offload_optimizer and self.stage == 0:
            raise ConfigError("offload_optimizer needs stage 1, 2 or 3, but stage is 0")
        if self.offload_parameters and self.stage != 3:
            raise ConfigError(f"offload_parameters needs stage 3, but stage is {self.stage}")


@dataclass(frozen=True)
class EvaluationConfig:
    """When to evaluate during training, what counts as best, and when to stop early."""

    every: int | None = None
    """Optimiser steps between evaluations; null: a tenth of the run."""
    batch: int | None = None
    """Samples a worker evaluates at a time; null: the micro batch."""
    metric: str = "loss"
    """The metric that decides which weights are best."""
    mode: str = field(default="min", metadata={"choices": ("min", "max")})
    """Whether the best is the lowest or the highest."""
    patience: int | None = None
    """Stop after this many evaluations without improvement, and give back the best weights instead
    of the last; null: never."""

    def __post_init__(self) -> None:
        for name in ("every", "batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, but it must be 1 or more, or null")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often to write checkpoints, and which to keep."""

    every: int | None = None
    """Optimiser steps between checkpoints; null: a tenth of the run."""
    keep: int = 2
    """Newest checkpoints kept, besides the best one."""
    weights_at_evaluations: bool = False
    """Also keep the weights alone at every evaluation (for scaling studies)."""

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ConfigError(f"every is {self.every}, but it must be 1 or more, or null")
        if self.keep < 1:
            raise ConfigError(f"keep is {self.keep}, but at least 1 checkpoint is kept")


@dataclass(frozen=True)
class BatchRampConfig:
    """Smaller batches at the beginning (`batch_schedule.samples_at`)."""

    start: int
    """Samples of the first optimiser step, over all workers."""
    increment: int
    """Samples that the batch grows by at a time, until it is the whole one."""
    every: int
    """Optimiser steps before each growth."""

    def __post_init__(self) -> None:
        for name in ("start", "increment", "every"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}, but it must be 1 or more")


@dataclass(frozen=True)
class FitConfig:
    """One training: batch, length, optimiser, precision, sharding, evaluation, checkpoints."""

    batch: int = 32
    """Samples in one optimiser step, over all workers."""
    micro_batch: int = 8
    """Samples a worker holds in one forward pass."""
    batch_ramp: BatchRampConfig | None = None
    """Begin with a smaller batch and let it grow to `batch`; null: the same in every step."""
    steps: int | None = None
    """Optimiser steps; give this or epochs."""
    epochs: float | None = None
    """Passes over the training data; the last incomplete batch is left out and reported."""
    precision: str = field(default="fp32", metadata={"choices": PRECISIONS})
    """Number format of the forward and backward pass; masters are always fp32."""
    clip: float | None = 1.0
    """Largest norm of the global gradient; null: no clipping."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler on a CPU)."""
    deterministic: bool = True
    """Only deterministic kernels, so that equal runs give equal numbers."""
    seed: int = 0
    """Seed of dropout and of anything else random in training."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning-rate schedule."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """Sharding of the training state."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation during training."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    max_failures: int = 3
    """How often a failed worker group is started again before the run fails."""
    profile: bool = False
    """Write a torch profiler trace of a few early steps into the run folder."""

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("micro_batch", self.micro_batch)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, but it must be 1 or more")
        if self.batch_ramp is not None:
            _check_ramp(self.batch_ramp, self.batch)
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(
                f"steps is {self.steps} and epochs is {self.epochs}: give exactly one of them"
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps is {self.steps}, but it must be 1 or more")
        if self.epochs is not None and self.epochs <= 0:
            raise ConfigError(f"epochs is {self.epochs}, but it must be above 0")
        if self.optimizer.name == "sgd" and self.zero.offload_optimizer:
            raise ConfigError(
                "optimizer.name is sgd and zero.offload_optimizer is true: "
                "only adamw can be offloaded"
            )
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"clip is {self.clip}, but it must be above 0, or null")


def _check_ramp(ramp: BatchRampConfig, batch: int) -> None:
    if ramp.start > batch:
        raise ConfigError(
            f"batch_ramp.start is {ramp.start} and batch is {batch}: a ramp starts at the batch or "
            "below"
        )
    if (batch - ramp.start) % ramp.increment:
        reached = batch - (batch - ramp.start) % ramp.increment
        raise ConfigError(
            f"batch_ramp.increment is {ramp.increment}, which does not lead from batch_ramp.start "
            f"= {ramp.start} to batch = {batch}: nearest is batch {reached} or "
            f"{reached + ramp.increment}"
        )
