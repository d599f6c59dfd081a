"""Causal attention over rows so short that holding all scores is the quickest way, on a CPU.

A fused kernel never holds the T x T scores, and pays for it: it computes them again in the backward
pass, and wants values as wide as keys, so narrower ones are padded. For some hundred tokens the
scores fit into the cache. Here they are formed once, kept as probabilities P, and

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - sum_s P dP),   dQ = a dS K,   dK = a dS^T Q.

Shapes: B batch, T tokens, H heads, D width of queries and keys, V width of values, X = B H.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

LONGEST = 256
"""Tokens up to which this is quicker than the fused kernel of torch 2.13 (measured at 4 heads)."""


def short_causal_attention(
    q_BTHD: torch.Tensor, k_BTHD: torch.Tensor, v_BTHV: torch.Tensor, scale: float
) -> torch.Tensor:
    """softmax(a q k^T) v over the tokens up to each: [B, T, H, V]; once differentiable."""
    apply: Callable[..., torch.Tensor] = _ShortAttention.apply
    return apply(q_BTHD, k_BTHD, v_BTHV, scale)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BTHD: torch.Tensor, k_BTHD: torch.Tensor, v_BTHV: torch.Tensor, scale: float
    ) -> torch.Tensor:
        q_XTD, k_XTD, v_XTV = (_by_head(one) for one in (q_BTHD, k_BTHD, v_BTHV))
        tokens, heads = q_BTHD.shape[1:3]
        hidden_TT = q_XTD.new_full((tokens, tokens), -math.inf).triu_(1)
        scores_XTT = torch.baddbmm(hidden_TT, q_XTD, k_XTD.transpose(1, 2), alpha=scale)
        weights_XTT = scores_XTT.softmax(-1)
        ctx.save_for_backward(q_XTD, k_XTD, v_XTV, weights_XTT)
        ctx.scale, ctx.heads = scale, heads
        return _from_heads(torch.bmm(weights_XTT, v_XTV), heads)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, slope_BTHV: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        q_XTD, k_XTD, v_XTV, weights_XTT = ctx.saved_tensors
        slope_XTV = _by_head(slope_BTHV)
        v_slope_XTV = torch.bmm(weights_XTT.transpose(1, 2), slope_XTV)
        p_slope_XTT = torch.bmm(slope_XTV, v_XTV.transpose(1, 2)).mul_(weights_XTT)
        sums_XT1 = p_slope_XTT.sum(-1, keepdim=True)
        s_slope_XTT = p_slope_XTT.addcmul_(weights_XTT, sums_XT1, value=-1.0)
        q_slope_XTD = torch.bmm(s_slope_XTT, k_XTD).mul_(ctx.scale)
        k_slope_XTD = torch.bmm(s_slope_XTT.transpose(1, 2), q_XTD).mul_(ctx.scale)
        return (
            _from_heads(q_slope_XTD, ctx.heads),
            _from_heads(k_slope_XTD, ctx.heads),
            _from_heads(v_slope_XTV, ctx.heads),
            None,
        )


def _by_head(x_BTHD: torch.Tensor) -> torch.Tensor:
    return x_BTHD.transpose(1, 2).flatten(0, 1)


def _from_heads(x_XTD: torch.Tensor, heads: int) -> torch.Tensor:
    return x_XTD.view(-1, heads, *x_XTD.shape[1:]).transpose(1, 2)
