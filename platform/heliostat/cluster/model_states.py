"""Bytes of what training keeps for every parameter, and of what a checkpoint stores.

Mixed precision with Adam: 2 bytes of weights, 2 of gradients, and 12 of optimiser state (an fp32
master, two moments), 16 together (Rajbhandari et al. 2020, section 3.1). In fp32: weights 4,
gradients 4, moments 8; from stage 1 on DeepSpeed keeps its partition of the weights a second time
as flat master, 4 more (`single_partition_of_fp32_groups` in 0.19). SGD has one moment, not two.

Stage 1 divides the optimiser state by the number of workers, stage 2 also the gradients, stage 3
also the weights. Offloading moves the optimiser state and the gradients it reads to host memory.

Not counted: activations (see `dry_pass`), communication buffers, the CUDA context, fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_MOMENT_BYTES = {"adamw": 8, "sgd": 4}
_FP32 = 4
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class ModelState:
    """Bytes of one worker."""

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0
    """What offloading keeps in host memory instead."""

    @property
    def device(self) -> float:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer

    def plus(self, other: ModelState) -> ModelState:
        """Both together."""
        return ModelState(
            weights=self.weights + other.weights,
            gradients=self.gradients + other.gradients,
            optimizer=self.optimizer + other.optimizer,
            host=self.host + other.host,
        )


def model_state_bytes(
    parameters: int,
    stage: int,
    world_size: int,
    precision: str,
    *,
    trainable: int | None = None,
    optimizer: str = "adamw",
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> ModelState:
    """What one worker keeps, activations apart.

    Args:
        parameters: all of the model's.
        stage: of ZeRO, 0 to 3.
        world_size: workers that share the state.
        precision: `fp32`, `bf16` or `fp16`.
        trainable: those that are trained; None for all.
        optimizer: `adamw` or `sgd`.
        offload_optimizer: keep optimiser state and gradients in host memory.
        offload_parameters: keep weights in host memory (stage 3).
    """
    trained = parameters if trainable is None else trainable
    weights: float = parameters * _WEIGHT_BYTES[precision]
    gradients: float = trained * _WEIGHT_BYTES[precision]
    state: float = trained * _optimizer_bytes(stage, precision, optimizer)
    if stage >= 1:
        state /= world_size
    if stage >= 2:
        gradients /= world_size
    if stage >= 3:
        weights /= world_size
    host = 0.0
    if offload_optimizer:
        # The host steps in fp32, whatever the device computes in.
        host += state + trained * _FP32 / world_size
        state = gradients = 0.0
    if offload_parameters:
        host += weights
        weights = 0.0
    return ModelState(weights=weights, gradients=gradients, optimizer=state, host=host)


def checkpoint_bytes(
    parameters: int,
    stage: int,
    precision: str,
    *,
    trainable: int | None = None,
    optimizer: str = "adamw",
) -> float:
    """Disk of one whole checkpoint, all workers together: weights and optimiser state."""
    trained = parameters if trainable is None else trainable
    state = trained * _optimizer_bytes(stage, precision, optimizer)
    return float(parameters * _WEIGHT_BYTES[precision] + state)


def weights_bytes(parameters: int) -> float:
    """Disk of the weights alone, which are exported in fp32."""
    return float(parameters * _FP32)


def _optimizer_bytes(stage: int, precision: str, optimizer: str) -> int:
    """Optimiser state per trained parameter: moments, and the master copy where there is one."""
    has_master = precision != "fp32" or stage > 0
    return _MOMENT_BYTES[optimizer] + (_FP32 if has_master else 0)
