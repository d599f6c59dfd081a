"""Attention over a part of the keys, and how parts become the whole.

The softmax over a union of key sets is the mean of the softmaxes over the sets, weighted by the
sums of their exponentials. So each part returns its output and the logarithm of its sum
(`Partial`), and `merge` adds any number of parts without ever holding all scores. Used where keys
come in blocks (a long prefix expanded block by block) and where two kinds of scores share one
softmax.

Fused kernels return the sum where there is one for the device and no gradient is asked for;
otherwise the scores are formed. `_fused` names an operator of torch 2.13 that is not public; that
of the CPU is probed by `models.tile_kernels`.

Shapes: B batch, H heads, T queries, S keys, D head width, V value width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.tile_kernels import HAS_FLASH, flash_forward


class Partial(NamedTuple):
    """Attention over some of the keys."""

    out: torch.Tensor
    """[B, H, T, V]: softmax over these keys alone, times their values."""
    log_sum: torch.Tensor
    """[B, H, T] float32 (float64 for float64): log of the sum of exp(score) over these keys; -inf
    where no key is visible."""


def partial_attention(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSV: torch.Tensor,
    *,
    scale: float,
    is_causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Partial:
    """Attention over one set of keys.

    Args:
        q_BHTD: Queries.
        k_BHSD: Keys; H may be 1, for all heads.
        v_BHSV: Values.
        scale: Factor of the scores.
        is_causal: Query t sees key s if s <= t + S - T: the last queries see the last keys.
        mask: Additive, broadcast to [B, H, T, S]; not together with `is_causal`.
    """
    needs_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (q_BHTD, k_BHSD, v_BHSV)
    )
    is_square = q_BHTD.shape[2] == k_BHSD.shape[2]
    if mask is None and not needs_gradient and (is_square or not is_causal):
        fused = _fused(q_BHTD, k_BHSD, v_BHSV, scale, is_causal)
        if fused is not None:
            return fused
    scores_BHTS = (q_BHTD @ k_BHSD.transpose(-1, -2)).mul(scale)
    if is_causal:
        tokens, keys = scores_BHTS.shape[-2:]
        visible = torch.ones(tokens, keys, dtype=torch.bool, device=q_BHTD.device)
        scores_BHTS = scores_BHTS.masked_fill(~visible.tril(keys - tokens), -math.inf)
    if mask is not None:
        scores_BHTS = scores_BHTS + mask
    return softmax_over(scores_BHTS, v_BHSV)


def softmax_over(scores_BHTS: torch.Tensor, v_BHSV: torch.Tensor) -> Partial:
    """The part of the attention that finished scores make."""
    wide = scores_BHTS if scores_BHTS.dtype == torch.float64 else scores_BHTS.float()
    largest_BHT1 = wide.detach().amax(-1, keepdim=True)
    # A query that sees no key has weights 0, not nan.
    largest_BHT1 = largest_BHT1.masked_fill(largest_BHT1.isneginf(), 0.0)
    weights_BHTS = (wide - largest_BHT1).exp_()
    total_BHT1 = weights_BHTS.sum(-1, keepdim=True)
    # Divided before the product: in half precision the sum of what is not might overflow.
    shares_BHTS = weights_BHTS / total_BHT1.clamp(min=torch.finfo(wide.dtype).tiny)
    out_BHTV = shares_BHTS.to(v_BHSV.dtype) @ v_BHSV
    return Partial(out_BHTV, (largest_BHT1 + total_BHT1.log())[..., 0])


def merge(parts: Sequence[Partial]) -> torch.Tensor:
    """Attention over the union of disjoint key sets: [B, H, T, V]."""
    return merge_partials(parts).out


def merge_partials(parts: Sequence[Partial]) -> Partial:
    """The union of disjoint key sets, itself a part of something larger."""
    if len(parts) == 1:
        return parts[0]
    log_sums_PBHT = torch.stack([part.log_sum for part in parts])
    total_BHT = log_sums_PBHT.logsumexp(0)
    floor_BHT = torch.where(total_BHT.isneginf(), 0.0, total_BHT)
    weights_PBHT = (log_sums_PBHT - floor_BHT).exp()
    out = sum(
        part.out * weight_BHT[..., None].to(part.out.dtype)
        for part, weight_BHT in zip(parts, weights_PBHT, strict=True)
    )
    assert isinstance(out, torch.Tensor)
    return Partial(out, total_BHT)


def pad_to_width(x: torch.Tensor, width: int) -> torch.Tensor:
    """Zeros behind the last axis up to `width`: equal widths are what fused kernels ask for."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, is_causal: bool
) -> Partial | None:
    """The same from a kernel that never holds the scores; None where there is none."""
    width = max(q.shape[-1], v.shape[-1])
    heads = q.shape[1]
    shape = (-1, heads, -1, -1)
    q, k, v_padded = (pad_to_width(x, width) for x in (q, k, v))
    k, v_padded = k.expand(shape), v_padded.expand(shape)
    if q.device.type == "cpu" and q.dtype != torch.float16 and HAS_FLASH:
        out, log_sum = flash_forward(q, k, v_padded, None, is_causal, scale)
    elif q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16):
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v_padded, None, True, 0.0, is_causal, scale=scale
        )
        # The kernel pads the axis of queries to its own block.
        log_sum = log_sum[..., : q.shape[2]]
    else:
        return None
    return Partial(out[..., : v.shape[-1]], log_sum)
