"""Cross entropy of a large output embedding without the logits of all rows at once.

For a row h with target y the loss is logsumexp(W h) - (W h)_y, its gradient with respect to the
logits softmax(W h) - onehot(y). Both need the logits of one row only, so the rows are walked in
chunks and the gradients with respect to h and W are formed on the way, in the forward pass: two
matrix products less than computing the logits again, and V x N numbers less than keeping them.

torch 2.13 has `torch.nn.functional.linear_cross_entropy` for the same purpose; its sum comes in
the dtype of the input, where a sum over many targets overflows (float16) or keeps three digits
(bfloat16), and a FLOP counter does not see inside it. Here softmax, sum and weight gradient are
float32 whatever the input.

Shapes: N rows, d width, V vocabulary, n rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

_LOGITS_AT_ONCE_CPU = 2**20
"""Logits of one chunk: they should stay in the second-level cache."""
_LOGITS_AT_ONCE = 2**26
"""The same elsewhere: enough to fill an accelerator, 256 MiB in float32."""
_FEWEST_ROWS = 256
"""Each chunk passes once over W and its gradient, which a handful of rows would not repay."""


def linear_cross_entropy_sum(
    hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    """Sum over rows of -log softmax(W h)[y], a float32 scalar; once differentiable."""
    # The meta device has shapes and no arithmetic, so autocast does not know it.
    device = "cpu" if hidden_Nd.is_meta else hidden_Nd.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_Nd, weight_Vd = hidden_Nd.to(dtype), weight_Vd.to(dtype)
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled():
            apply: Callable[..., torch.Tensor] = _LinearCrossEntropy.apply
            return apply(hidden_Nd, weight_Vd, targets_N)
        return _total(hidden_Nd, weight_Vd, targets_N)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor
    ) -> torch.Tensor:
        result = _total_and_gradients(hidden_Nd, weight_Vd, targets_N)
        ctx.save_for_backward(result.hidden_gradient, result.weight_gradient)
        ctx.weight_dtype = weight_Vd.dtype
        return result.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden_gradient_Nd, weight_gradient_Vd = ctx.saved_tensors
        return (
            hidden_gradient_Nd * gradient,
            (weight_gradient_Vd * gradient).to(ctx.weight_dtype),
            None,
        )


class _TotalAndGradients(NamedTuple):
    total: torch.Tensor
    hidden_gradient: torch.Tensor
    weight_gradient: torch.Tensor


def _total(
    hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    total = hidden_Nd.new_zeros((), dtype=torch.float32)
    for rows in _chunks(hidden_Nd, weight_Vd):
        logits_nV = (hidden_Nd[rows] @ weight_Vd.T).float()
        at_target_n1 = logits_nV.gather(1, targets_N[rows, None])
        total += (logits_nV.logsumexp(1, keepdim=True) - at_target_n1).sum()
    return total


def _total_and_gradients(
    hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor
) -> _TotalAndGradients:
    total = hidden_Nd.new_zeros((), dtype=torch.float32)
    hidden_gradient_Nd = torch.empty_like(hidden_Nd)
    weight_gradient_Vd = torch.zeros_like(weight_Vd, dtype=torch.float32)
    for rows in _chunks(hidden_Nd, weight_Vd):
        targets_n1 = targets_N[rows, None]
        hidden_nd = hidden_Nd[rows]
        logits_nV = (hidden_nd @ weight_Vd.T).float()
        logits_nV -= logits_nV.amax(1, keepdim=True)
        at_target_n1 = logits_nV.gather(1, targets_n1)
        exponentials_nV = logits_nV.exp_()
        normaliser_n1 = exponentials_nV.sum(1, keepdim=True)
        total += (normaliser_n1.log() - at_target_n1).sum()
        slope_nV = exponentials_nV.div_(normaliser_n1)
        slope_nV.scatter_add_(1, targets_n1, slope_nV.new_full(targets_n1.shape, -1.0))
        slope_nV = slope_nV.to(hidden_nd.dtype)
        torch.mm(slope_nV, weight_Vd, out=hidden_gradient_Nd[rows])
        if weight_Vd.dtype == torch.float32:
            # addmm_ would be the same, but no FLOP counter knows it.
            torch.addmm(weight_gradient_Vd, slope_nV.T, hidden_nd, out=weight_gradient_Vd)
        else:
            weight_gradient_Vd += slope_nV.T @ hidden_nd
    return _TotalAndGradients(total, hidden_gradient_Nd, weight_gradient_Vd)


def _chunks(hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor) -> list[slice]:
    at_once = _LOGITS_AT_ONCE_CPU if hidden_Nd.device.type == "cpu" else _LOGITS_AT_ONCE
    rows = max(_FEWEST_ROWS, at_once // len(weight_Vd))
    return [slice(start, start + rows) for start in range(0, len(hidden_Nd), rows)]
