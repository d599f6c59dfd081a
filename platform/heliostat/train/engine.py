"""The one place that builds a DeepSpeed engine from our config.

The optimiser is torch's own, handed to DeepSpeed as the client optimiser, and the shared-memory
extension is switched off: on a CPU both would otherwise be compiled at first use, which needs a C++
compiler, takes minutes, and hangs for ever behind a stale lock file.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from heliostat.checkpoint.safe_load import pickle_enums_by_value
from heliostat.data.reader import BatchPlan
from heliostat.errors import ConfigError
from heliostat.train.config import FitConfig, OptimizerConfig
from heliostat.train.task import Batch, Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REDUCE_BUCKET = 500_000_000
"""Elements of gradients that are summed over the ranks at a time, at most (DeepSpeed's default)."""

_built: weakref.WeakSet[Any] = weakref.WeakSet()
"""The engines of this process that are still in memory."""


def prepare_deepspeed() -> None:
    """Import DeepSpeed quietly and without anything that compiles at run time."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.ERROR)
    pickle_enums_by_value()
    # A private table of deepspeed 0.19.8; a test fails when the name goes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_engine(
    task: Task,
    model: nn.Module,
    config: FitConfig,
    plan: BatchPlan,
    *,
    universal: bool,
) -> Any:
    """A DeepSpeed engine around the model, ready to train or to load a checkpoint.

    Args:
        task: names the parameter groups.
        model: on the CPU, in float32, the same on every rank.
        config: of this training.
        plan: how the global batch is cut.
        universal: whether a checkpoint in the universal format will be loaded.
    """
    prepare_deepspeed()
    import deepspeed

    if config.activation_checkpointing:
        enable_activation_checkpointing(model)
    optimizer = build_optimizer(task.parameter_groups(model), config.optimizer)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, plan, trained=_trained(model), universal=universal),
        dist_init_required=False,
    )
    _built.add(engine)
    if config.precision != "fp32":
        engine.module.register_forward_pre_hook(
            _cast_inputs(DTYPES[config.precision]), with_kwargs=True
        )
    if config.compile:
        engine.module.compile()
    return engine


def are_engines_gone() -> bool:
    """Whether nothing holds an engine of this process any more."""
    gc.collect()
    return not _built


def _trained(model: nn.Module) -> int:
    """Elements of the weights that are trained."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


def deepspeed_config(
    config: FitConfig, plan: BatchPlan, *, trained: int, universal: bool
) -> dict[str, Any]:
    """DeepSpeed's own configuration; the only place where its keys are written.

    Args:
        config: of the training.
        plan: how the global batch is cut.
        trained: elements of the weights that are trained.
        universal: whether a checkpoint in the universal format will be loaded.
    """
    zero: dict[str, Any] = {
        "stage": config.zero.stage,
        # Its buffer of gradients on their way is allocated whole, by stages 1 and 2 in every
        # backward pass; more than all gradients together never fits into it.
        "reduce_bucket_size": min(REDUCE_BUCKET, max(1, trained)),
    }
    if config.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.zero.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # Without ZeRO in fp32 we clip ourselves, since DeepSpeed would not tell the norm.
        "gradient_clipping": 0.0 if clips_itself(config) else (config.clip or 0.0),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW steps offloaded state as well, and unlike DeepSpeed's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16", "loss_scale": 0},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
    }


def clips_itself(config: FitConfig) -> bool:
    """Whether the training loop, not DeepSpeed, clips the gradient."""
    return config.zero.stage == 0 and config.precision == "fp32"


def build_optimizer(
    groups: Sequence[Mapping[str, Any]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """torch's optimiser over the task's groups; `lr_scale` of a group multiplies the rate."""
    prepared = []
    for group in groups:
        # The rate is set before every step (`set_learning_rate`); the scale stays with the group.
        scale = group.get("lr_scale", 1.0)
        prepared.append({**group, "lr": config.lr * scale, "lr_scale": scale})
    if config.name == "adamw":
        return torch.optim.AdamW(
            prepared,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        prepared, lr=config.lr, momentum=config.beta1, weight_decay=config.weight_decay
    )


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The usual parameter groups: no weight decay on biases and normalisation weights."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2]},
        {
            "params": [parameter for parameter in trainable if parameter.ndim < 2],
            "weight_decay": 0.0,
        },
    ]


def set_learning_rate(engine: Any, lr: float) -> None:
    """Set the rate of every group, times the group's own scale."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def set_batch(engine: Any, plan: BatchPlan) -> None:
    """Tell DeepSpeed how many micro batches the coming step has.

    It divides the loss by their number. Which of them is the last it would find from a count of all
    micro batches so far, which is wrong when the number changes (DeepSpeed 0.19.8), so that is for
    the caller to say (`set_gradient_accumulation_boundary`).
    """
    engine.set_train_batch_size(plan.global_batch)


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Switch on every submodule's `checkpoint_activations`, the convention of `models/`."""
    modules = [module for module in model.modules() if hasattr(module, "checkpoint_activations")]
    if not modules:
        raise ConfigError(
            f"activation_checkpointing is true, but {type(model).__name__} has no module with a "
            "`checkpoint_activations` switch"
        )
    for module in modules:
        module.checkpoint_activations = True  # type: ignore[assignment]


def fp32_weights(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 value of every weight, whole, on the CPU. Iterated by all ranks together.

    Yields one tensor at a time, so a rank never holds more than one beside its own shard. Tied
    weights come once under each of their names.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    masters = _masters_without_zero(engine)
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        master = masters.get(id(parameter))
        if master is None:
            master = safe_get_full_fp32_param(parameter)
        if master is not None:
            yield name, master.detach().to("cpu", torch.float32, copy=True)
            continue
        # No master: without ZeRO in fp32, or frozen, and then sharded all the same in stage 3.
        with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            yield name, parameter.detach().to("cpu", torch.float32, copy=True)
    # In every precision DeepSpeed 0.19.8 leaves buffers as the model made them.
    persistent = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers(remove_duplicate=False):
        if name in persistent:
            yield name, buffer.detach().to("cpu", copy=True)


def _masters_without_zero(engine: Any) -> dict[int, torch.Tensor]:
    """The float32 master of each weight by the weight's id, where DeepSpeed does not link them.

    Without ZeRO in half precision they are in the groups of `FP16_UnfusedOptimizer` (DeepSpeed
    0.19.8), also in bf16, and `safe_get_full_fp32_param` finds none.
    """
    if engine.zero_optimization_stage() > 0 or not hasattr(engine.optimizer, "fp32_groups"):
        return {}
    halves, wholes = engine.optimizer.fp16_groups, engine.optimizer.fp32_groups
    return {
        id(half): whole
        for half_group, whole_group in zip(halves, wholes, strict=True)
        for half, whole in zip(half_group, whole_group, strict=True)
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the worker's device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _cast_inputs(dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(cast(arg) for arg in args), {name: cast(arg) for name, arg in kwargs.items()}

    return hook
