"""Floating-point operations: counted by torch, estimated by formula, and as a share of the peak.

Formulas. A training step (forward and backward) takes 6 operations per token and matrix parameter
that takes part: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022,
appendix B). The input embedding is a look-up and does not count; the output projection does.
Attention adds, per token, layer and head, `6 n (d_qk + d_v)` at context length n, of which a causal
mask leaves half useful.

torch's counter counts the whole attention matrix whatever the mask, and what activation
checkpointing computes twice. Count a model without checkpointing to get model FLOPs. On CUDA its
formula for the backward pass of fused attention counts the scores again, which the kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heliostat.cluster.hardware import peak_flops
from heliostat.errors import Fault

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class AttentionShape:
    """What the attention of a decoder costs beyond its projections."""

    layers: int
    heads: int
    query_width: int
    """Width of a query and key per head (d_qk)."""
    value_width: int
    """Width of a value per head (d_v)."""
    context: int
    """Tokens each query can see at most (n)."""
    is_causal: bool = True
    """Count only the useful half of the matrix."""


def training_flops(parameters: float, tokens: float, attention: AttentionShape | None) -> float:
    """Operations of forward and backward passes over tokens.

    Args:
        parameters: matrix parameters that each token passes: the input embedding left out, of
            experts only those a token is routed to.
        tokens: tokens trained on, repetitions included.
        attention: None for a model without attention.
    """
    per_token = 6.0 * parameters
    if attention is not None:
        a = attention
        full = 6.0 * a.layers * a.heads * a.context * (a.query_width + a.value_width)
        per_token += full / 2 if a.is_causal else full
    return per_token * tokens


def measure_flops(model: nn.Module, run: Callable[[], object]) -> float:
    """Operations that torch counts while `run()` calls the model, backward pass included.

    Args:
        model: the module whose calls are counted; everything else that `run` does counts too.
        run: does one forward pass, and the backward pass where that is to be counted.

    Raises:
        Fault: nothing was counted, so `run` did not use the model.
    """
    from torch.utils.flop_counter import FlopCounterMode

    called = False

    def note_call(*_: object) -> None:
        nonlocal called
        called = True

    handle = model.register_forward_pre_hook(note_call)
    try:
        with FlopCounterMode(display=False, custom_mapping=_attention_on_cpu()) as counter:
            run()
    finally:
        handle.remove()
    if not called:
        raise Fault("FLOPs cannot be counted: the function to measure never called the model")
    return float(counter.get_total_flops())


def _attention_on_cpu() -> dict[Any, Any]:
    """Formulas for torch's fused attention on CPUs, which its counter takes for free (2.13).

    The scores and their product with the values are two matrix products; the backward pass has
    four, what the kernel computes a second time left out as for every other operation.
    """
    import torch

    def forward(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
        batch, heads, rows, width = query
        return 4 * batch * heads * rows * key[-2] * width

    def backward(
        grad: Sequence[int], query: Sequence[int], key: Sequence[int], *_: object, **__: object
    ) -> int:
        return 2 * forward(query, key)

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return {attention: forward, attention_backward: backward}


def model_flops_utilisation(
    flops_per_step: float,
    seconds: float,
    world_size: int,
    device_name: str | None,
    precision: str,
) -> float | None:
    """Share of the devices' dense peak that a step's model FLOPs make up (MFU).

    Args:
        flops_per_step: model operations of one optimiser step over all workers, without
            recomputation.
        seconds: wall-clock time of that step.
        world_size: devices that share the step.
        device_name: as `torch.cuda.get_device_name` reports it; None on a CPU.
        precision: one of `hardware.PRECISIONS`.

    Returns:
        A number in [0, 1], or None when the peak is unknown; then show no MFU.

    Raises:
        Fault: the result would be above 1, so FLOPs, time or device are wrong.
    """
    if seconds <= 0 or world_size < 1:
        raise Fault(f"MFU needs a positive time and device count, got {seconds} s, {world_size}")
    peak = None if device_name is None else peak_flops(device_name, precision)
    if peak is None:
        return None
    share = flops_per_step / (seconds * world_size * peak)
    if share > 1:
        raise Fault(
            f"MFU would be {share:.0%}: {flops_per_step:.4g} FLOPs in {seconds:.4g} s on "
            f"{world_size} x {device_name} ({peak:.4g} FLOP/s dense in {precision}); "
            "the FLOP count, the time or the device is wrong"
        )
    return share
