"""Attention of some queries over some keys with its log-sum-exp, forward and backward: a tile.

What one tile computes can be merged with what other tiles compute for the same queries, because the
log-sum-exp of the logits comes with the output (`models.merge_attention`). The backward pass takes
the output and the log-sum-exp of the *whole* softmax, not of the tile: with l* global,
P = exp(s - l*) is the true probability and delta_i = sum(dO_i * O_i) the true row sum, so the
gradients of a tile are exact and those of all tiles add up.

Two kernels do the same work:

* `FLASH`: torch's flash attention for CPUs. It is a private operator, the only one that returns the
  log-sum-exp and takes one for the backward pass; it is probed at import, and
  `tests/models/test_merge_attention.py` fails when it changes.
* `BLOCKED`: an online softmax over blocks of keys (Milakov and Gimelshein 2018, arXiv 1805.02867),
  in plain torch. Slower, for any device, any version, and values of another width than the keys.

Shapes: B batch, H query heads, K key heads, T queries of the tile, S its keys, D head width, V
width of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

TileOutput = tuple[torch.Tensor, torch.Tensor]
"""Output [B, H, T, V] and log-sum-exp [B, H, T]."""
TileGradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Gradients of queries, keys and values."""

_BLOCK_KEYS = 256
"""Keys that `BLOCKED` looks at together: bounds its memory."""


class TileKernel(NamedTuple):
    """Both directions. A mask is additive, [B or 1, 1, T, S]; causal means key s <= query t."""

    forward: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool], TileOutput
    ]
    """(q, k, v, mask, is_causal) -> output, log-sum-exp; scaled by 1 / sqrt(D)."""
    backward: Callable[
        [
            torch.Tensor,
            torch.Tensor,
            torch.Tensor,
            torch.Tensor,
            torch.Tensor,
            torch.Tensor,
            torch.Tensor | None,
            bool,
        ],
        TileGradients,
    ]
    """(grad of output, q, k, v, output, log-sum-exp, mask, is_causal) -> gradients."""


def flash_forward(
    q_BHTD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSD: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None = None,
) -> TileOutput:
    """The forward pass of `FLASH`; only where `HAS_FLASH`. `scale` is 1 / sqrt(D) when None."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTD, k_BKSD, v_BKSD, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    return out, _without_blind_rows(lse, mask)


def _flash_backward(
    grad_BHTD: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSD: torch.Tensor,
    out_BHTD: torch.Tensor,
    lse_BHT: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> TileGradients:
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_BHTD, q_BHTD, k_BKSD, v_BKSD, out_BHTD, lse_BHT, 0.0, is_causal, attn_mask=mask
    )
    return dq, dk, dv


def _without_blind_rows(lse_BHT: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """-inf where a query sees no key: torch 2.13 returns 0 there, with an output of zeros."""
    if mask is None:
        return lse_BHT
    blind_B1T = torch.isneginf(mask.amax(dim=-1))
    return lse_BHT.masked_fill(blind_B1T, -math.inf)


def _blocked_forward(
    q_BHTD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSV: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> TileOutput:
    q_BKGTD = _by_key_head(q_BHTD, k_BKSD)
    dtype = _precise(q_BHTD)
    running_max = q_BKGTD.new_full(q_BKGTD.shape[:-1], -math.inf, dtype=dtype)
    total = torch.zeros_like(running_max)
    out = q_BKGTD.new_zeros(*q_BKGTD.shape[:-1], v_BKSV.shape[-1], dtype=dtype)
    for start in range(0, k_BKSD.shape[2], _BLOCK_KEYS):
        keys = slice(start, start + _BLOCK_KEYS)
        scores = _scores(q_BKGTD, k_BKSD, keys, mask, is_causal)
        larger = torch.maximum(running_max, scores.amax(dim=-1))
        # A row that has seen nothing yet keeps -inf; its exponentials must be 0 and not nan.
        shift = larger.masked_fill(torch.isneginf(larger), 0.0)
        weights = torch.exp(scores - shift[..., None])
        fade = torch.exp(running_max - shift)
        total = total * fade + weights.sum(dim=-1)
        out = out * fade[..., None] + weights.to(v_BKSV.dtype) @ v_BKSV[:, :, None, keys]
        running_max = larger
    out = out / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    lse = running_max + total.log()
    return out.to(v_BKSV.dtype).flatten(1, 2), lse.flatten(1, 2)


def _blocked_backward(
    grad_BHTV: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BKSD: torch.Tensor,
    v_BKSV: torch.Tensor,
    out_BHTV: torch.Tensor,
    lse_BHT: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> TileGradients:
    q_BKGTD, grad = _by_key_head(q_BHTD, k_BKSD), _by_key_head(grad_BHTV, k_BKSD)
    dtype = _precise(q_BHTD)
    delta = (grad * _by_key_head(out_BHTV, k_BKSD)).sum(dim=-1, keepdim=True, dtype=dtype)
    lse = _by_key_head(lse_BHT[..., None], k_BKSD)
    scale = 1.0 / math.sqrt(q_BHTD.shape[-1])
    dq, dk, dv = torch.zeros_like(q_BKGTD), torch.zeros_like(k_BKSD), torch.zeros_like(v_BKSV)
    for start in range(0, k_BKSD.shape[2], _BLOCK_KEYS):
        keys = slice(start, start + _BLOCK_KEYS)
        weights = torch.exp(_scores(q_BKGTD, k_BKSD, keys, mask, is_causal) - lse)
        dv[:, :, keys] = (weights.to(grad.dtype).mT @ grad).sum(dim=2)
        along = weights * (grad @ v_BKSV[:, :, None, keys].mT - delta) * scale
        along = along.to(q_BHTD.dtype)
        dq += along @ k_BKSD[:, :, None, keys]
        dk[:, :, keys] = (along.mT @ q_BKGTD).sum(dim=2)
    return dq.flatten(1, 2), dk, dv


def _precise(q: torch.Tensor) -> torch.dtype:
    """What softmaxes are computed in: float32 at least."""
    return torch.promote_types(q.dtype, torch.float32)


def _by_key_head(x_BHTD: torch.Tensor, k_BKSD: torch.Tensor) -> torch.Tensor:
    """[B, H, T, D] as [B, K, H / K, T, D]: query heads beside the key head that they share."""
    return torch.unflatten(x_BHTD, 1, (k_BKSD.shape[1], -1))


def _scores(
    q_BKGTD: torch.Tensor,
    k_BKSD: torch.Tensor,
    keys: slice,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    scores = (q_BKGTD @ k_BKSD[:, :, None, keys].mT).to(_precise(q_BKGTD))
    scores = scores / math.sqrt(q_BKGTD.shape[-1])
    if mask is not None:
        scores = scores + mask[:, :, None, :, keys]
    if is_causal:
        at = torch.arange(scores.shape[-1], device=scores.device) + keys.start
        later = at > torch.arange(scores.shape[-2], device=scores.device)[:, None]
        scores = scores.masked_fill(later, -math.inf)
    return scores


FLASH = TileKernel(flash_forward, _flash_backward)
BLOCKED = TileKernel(_blocked_forward, _blocked_backward)


def _flash_agrees() -> bool:
    """Whether this torch has the private operator and it means what it did in torch 2.13."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(1, heads, 5, 4, generator=generator, dtype=torch.float64)
        for heads in (2, 1, 1, 2)
    )
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    mask[..., 3, :] = -math.inf
    try:
        for given, is_causal in ((None, True), (mask, False)):
            expected = _blocked_forward(q, k, v, given, is_causal)
            found = flash_forward(q, k, v, given, is_causal)
            same = all(
                torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True)
            )
            lse = expected[1].clamp(min=0.0) + 1.0
            backward = (grad, q, k, v, expected[0], lse, given, is_causal)
            pairs = zip(_flash_backward(*backward), _blocked_backward(*backward), strict=True)
            if not same or not all(torch.allclose(a, b, atol=1e-12) for a, b in pairs):
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


HAS_FLASH = _flash_agrees()
"""Whether `FLASH` can be used on the CPU."""


def kernel_for(q_BHTD: torch.Tensor, v_BKSV: torch.Tensor) -> TileKernel:
    """The fastest kernel that can take these."""
    fits = q_BHTD.device.type == "cpu" and q_BHTD.shape[-1] == v_BKSV.shape[-1]
    return FLASH if HAS_FLASH and fits else BLOCKED
