"""Attention on torch's `meta` device with the costs of a fused kernel.

`meta` has no fused attention: it would save the whole matrix of scores for the backward pass, which
the kernels on real devices never store (Dao et al. 2022, arXiv 2205.14135). The stand-in saves
queries, keys, values, the output and one normaliser a row, and does the six matrix products of
forward and backward, the whole square whatever the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode


def with_fused_attention(forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Call `forward` with `scaled_dot_product_attention` replaced for tensors on `meta`."""
    with _FusedAttentionOnMeta():
        return forward()


class _FusedAttentionOnMeta(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            inputs = list(args) + [
                named[name] for name in ("query", "key", "value") if name in named
            ]
            query = inputs[0]
            if isinstance(query, torch.Tensor) and query.device.type == "meta":
                mask = inputs[3] if len(inputs) > 3 else named.get("attn_mask")
                return _FusedAttention.apply(*inputs[:3], mask)  # type: ignore[no-untyped-call]
        return func(*args, **named)


class _FusedAttention(torch.autograd.Function):
    """softmax(q k^T) v without values; keys and values may have fewer heads (grouped queries).

    Shapes: query [..., heads, rows, width], key and value [..., shared heads, rows, width].
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        scores = query @ _for_each(query, key).transpose(-1, -2)
        out = scores @ _for_each(query, value)
        if query.ndim > 2:
            # Fused kernels write [..., rows, heads, width], so that joining heads copies nothing.
            out = out.transpose(-3, -2).contiguous().transpose(-3, -2)
        normalisers = scores.new_empty(scores.shape[:-1], dtype=torch.float32)
        masks = () if mask is None else (mask,)
        ctx.save_for_backward(query, key, value, out, normalisers, *masks)
        return out

    @staticmethod
    def backward(
        ctx: FunctionCtx, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        (grad,) = grad_outputs
        query, key, value = ctx.saved_tensors[:3]  # type: ignore[attr-defined]
        scores = grad @ _for_each(query, value).transpose(-1, -2)
        _ = scores.transpose(-1, -2) @ grad, scores.transpose(-1, -2) @ query
        grad_query = scores @ _for_each(query, key)
        return grad_query, torch.empty_like(key), torch.empty_like(value), None


def _for_each(query: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Keys or values repeated for every query head that shares them."""
    groups = query.shape[-3] // shared.shape[-3] if query.ndim > 2 else 1
    return shared if groups == 1 else shared.repeat_interleave(groups, dim=-3)
