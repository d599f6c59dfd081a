"""One micro batch through a model that has shapes but no values.

On torch's `meta` device a forward and backward pass costs no memory and no arithmetic, and still
tells how much autograd would save (activations) and how many operations there are. Fused attention
is stood in for, since `meta` has no fused kernel and would save the whole matrix of scores that the
kernels on real devices never store.

What this is not: a profile. Temporary buffers inside an operation and the caching allocator's
rounding do not show. A model whose control flow depends on values cannot run on `meta`; then the
same is measured on the CPU, if the model is small enough for that to take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.fx.experimental._config as meta_nonzero
from torch import nn

from heliostat.cluster.flops import measure_flops
from heliostat.cluster.meta_attention import with_fused_attention
from heliostat.train.shared_weights import Shareable
from heliostat.train.task import Batch, LossTerm, Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has; shared ones count once."""

    total: int
    trainable: int
    embedding: int
    """Those of look-up tables, which take no part in matrix products unless tied."""
    shareable: int = 0
    """Those that workers can share out: experts."""


@dataclass(frozen=True)
class DryPass:
    """What one micro batch costs on one worker."""

    flops: float
    """Forward and backward, nothing computed twice."""
    activation_bytes: float
    """Saved for the backward pass."""
    checkpointed_bytes: float | None
    """The same with activation checkpointing; None when the model has no switch for it."""
    device: str
    """Where it was measured: `meta` or `cpu`."""


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters; works on any device."""
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    tables = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    return ParameterCount(
        total=sum(parameter.numel() for parameter in parameters.values()),
        trainable=sum(p.numel() for p in parameters.values() if p.requires_grad),
        embedding=sum(table.numel() for table in tables.values()),
        shareable=sum(
            parameter.numel()
            for module in model.modules()
            if isinstance(module, Shareable)
            for parameter in module.shared_parameters()
        ),
    )


def dry_pass(task: Task, model: nn.Module, batch: Batch, precision: str) -> DryPass:
    """Run a micro batch forward and backward and count.

    Args:
        task: gives the loss.
        model: on `meta` or on the CPU; it is changed to the precision and may keep gradients.
        batch: of one micro batch, on any device.
        precision: `fp32`, `bf16` or `fp16`.
    """
    dtype = DTYPES[precision]
    device = next(model.parameters()).device
    model.to(dtype).train()
    moved = {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in batch.items()
    }

    def forward() -> torch.Tensor:
        # Rows that are picked by a mask are all picked: the most that the batch can cost.
        with meta_nonzero.patch(meta_nonzero_assume_all_nonzero=True):  # type: ignore[attr-defined]
            found = task.loss(model, moved).values()
        totals = [one.total.float().reshape(()) for one in found if isinstance(one, LossTerm)]
        return torch.stack(totals).sum()

    with _checkpointing(model, False):
        flops = measure_flops(model, lambda: torch.autograd.backward(with_fused_attention(forward)))
        saved, largest_block = _saved_bytes(model, forward)
    model.zero_grad(set_to_none=True)
    return DryPass(
        flops=flops,
        activation_bytes=saved,
        checkpointed_bytes=_checkpointed_bytes(model, forward, largest_block),
        device=device.type,
    )


def _checkpointed_bytes(
    model: nn.Module, forward: Callable[[], torch.Tensor], largest_block: float
) -> float | None:
    """The inputs of all blocks, and one whole block while it is computed again."""
    if not _switches(model):
        return None
    with _checkpointing(model, True):
        kept, _ = _saved_bytes(model, forward)
    return kept + largest_block


def _saved_bytes(model: nn.Module, forward: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Bytes autograd saves in a forward pass, and those of the block that saves most.

    Parameters are left out, and tensors that share storage count once. A block is a member of a
    `ModuleList`, such as one layer.
    """
    weights = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
    # Holds the storages: an address is only unique while its storage lives.
    saved: dict[int, torch.UntypedStorage] = {}
    largest = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in saved.values())

    entered: list[int] = []

    def enter(*_: object) -> None:
        entered.append(total())

    def leave(*_: object) -> None:
        nonlocal largest
        largest = max(largest, total() - entered.pop())

    handles = []
    for block in _blocks(model):
        handles.append(block.register_forward_pre_hook(enter))
        handles.append(block.register_forward_hook(leave))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with_fused_attention(forward)
    finally:
        for handle in handles:
            handle.remove()
    return float(total()), float(largest)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [
        block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module
    ]


def _switches(model: nn.Module) -> list[nn.Module]:
    """Submodules with `checkpoint_activations`, the switch that `fit` uses."""
    return [module for module in model.modules() if hasattr(module, "checkpoint_activations")]


@contextmanager
def _checkpointing(model: nn.Module, on: bool) -> Iterator[None]:
    before = [(module, module.checkpoint_activations) for module in _switches(model)]
    for module, _ in before:
        module.checkpoint_activations = on  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, value in before:
            module.checkpoint_activations = value
