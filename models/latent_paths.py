"""The two ways to compute multi-head latent attention, and when to take which.

Keys and values of head i are linear in the cached latent: k^C_i = W_UK,i c and v_i = W_UV,i c. So
the same attention can be had by expanding keys and values (`expanded`), as training does, or by
moving the two matrices to the query and to the output and attending to the latents themselves
(`absorbed`), multi-query attention with one key of width d_c + d_R:

    s_tj,i = a (q^C_t,i . W_UK,i c_j + q^R_t,i . k^R_j)
           = a ((W_UK,i^T q^C_t,i) . c_j + q^R_t,i . k^R_j)
    o_t,i  = sum_j p_tj,i W_UV,i c_j = W_UV,i sum_j p_tj,i c_j

W_UK is not multiplied into W_UQ beforehand nor W_UV into W_O: that costs more and, in bfloat16,
precision. With m new tokens at context n the two cost, in FLOPs of a head,

    expanded: 2 n d_c (d_n + d_v) + 2 m n (d_n + d_R + d_v)
    absorbed: 2 m d_c (d_n + d_v) + 2 m n (2 d_c + d_R)

and `is_absorbed_cheaper` compares these (DeepSeek-V2: about 171 new tokens at a long context). What
either holds at a time is bounded by a workspace: the context is walked in blocks, whose softmaxes
are merged (`models.partial_attention`). One new token needs no blocks on CPU, where the kernel for
it holds no scores.

Layout: a query is [q^R; q^C], the rotated part first, as in every attention of this package; an
entry of the cache is [c; k^R]. The new tokens are the last of the context.

Shapes: B batch, T new tokens (m), S context (n), H heads,
R = d_R, N = d_n, V = d_v, c = d_c, e = c + R.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.partial_attention import (
    Partial,
    merge,
    pad_to_width,
    partial_attention,
    softmax_over,
)
from models.short_attention import LONGEST, short_causal_attention

WORKSPACE = 2**25
"""Numbers that a path may hold for expanded keys and values, or for scores: 128 MiB in float32."""
_SHORTEST_BLOCK = 128
"""Blocks of fewer keys would be slower than the memory is worth."""


class LatentWidths(NamedTuple):
    """The widths that the cost of a path depends on."""

    heads: int
    nope: int
    """d_n."""
    rotary: int
    """d_R."""
    value: int
    """d_v."""
    latent: int
    """d_c."""


def expanded_flops(widths: LatentWidths, new_tokens: int, context: int) -> int:
    """FLOPs of a head to expand the context and attend to it."""
    inner = widths.nope + widths.value
    return 2 * context * (widths.latent * inner + new_tokens * (inner + widths.rotary))


def absorbed_flops(widths: LatentWidths, new_tokens: int, context: int) -> int:
    """FLOPs of a head to attend to the latents."""
    both = 2 * widths.latent + widths.rotary
    return 2 * new_tokens * (widths.latent * (widths.nope + widths.value) + context * both)


def is_absorbed_cheaper(widths: LatentWidths, new_tokens: int, context: int) -> bool:
    """Whether fewer FLOPs are spent on the latents than on expanded keys and values."""
    return absorbed_flops(widths, new_tokens, context) < expanded_flops(widths, new_tokens, context)


def expand(
    c_BSc: torch.Tensor, rotary_key_BSR: torch.Tensor, up_HPc: torch.Tensor, nope: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [B, S, H, R + N] and values [B, S, H, V] of all heads.

    Args:
        c_BSc: The latents.
        rotary_key_BSR: The rotary key of all heads, rotated.
        up_HPc: W_UKV by head, P = N + V rows, those of the key first.
        nope: N.
    """
    heads = len(up_HPc)
    up_BSHP = torch.unflatten(F.linear(c_BSc, up_HPc.flatten(0, 1)), -1, (heads, -1))
    key_BSHN, v_BSHV = torch.split(up_BSHP, [nope, up_BSHP.shape[-1] - nope], dim=-1)
    shared_BSHR = rotary_key_BSR[:, :, None].expand(-1, -1, heads, -1)
    return torch.cat((shared_BSHR, key_BSHN), dim=-1), v_BSHV


def causal_expanded(
    q_BTHD: torch.Tensor,
    k_BTHD: torch.Tensor,
    v_BTHV: torch.Tensor,
    *,
    scale: float,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of tokens to themselves and those before them: [B, T, H, V]. No context before.

    Values are padded to the width of the keys (or the other way round), because only equal widths
    get a fused kernel; otherwise the scores of all pairs are held. Which is right for short rows.
    """
    value_width = v_BTHV.shape[-1]
    is_short = q_BTHD.shape[1] <= LONGEST and q_BTHD.device.type == "cpu"
    if mask is None and is_short and value_width != q_BTHD.shape[-1]:
        return short_causal_attention(q_BTHD, k_BTHD, v_BTHV, scale)
    width = max(q_BTHD.shape[-1], value_width)
    out_BHTD = F.scaled_dot_product_attention(
        pad_to_width(q_BTHD, width).transpose(1, 2),
        pad_to_width(k_BTHD, width).transpose(1, 2),
        pad_to_width(v_BTHV, width).transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return out_BHTD.transpose(1, 2)[..., :value_width]


def expanded(
    q_BTHD: torch.Tensor,
    entries_BSe: torch.Tensor,
    up_HPc: torch.Tensor,
    *,
    nope: int,
    scale: float,
    mask: torch.Tensor | None = None,
    workspace: int = WORKSPACE,
) -> torch.Tensor:
    """Attention to expanded keys and values, block by block: [B, T, H, V].

    Args:
        q_BTHD: Queries of the new tokens, [q^R; q^C].
        entries_BSe: [c; k^R] of the context, the new tokens at its end.
        up_HPc: W_UKV by head.
        nope: N.
        scale: Factor of the scores.
        mask: Additive, [B, 1, T, S]; None for plain causal attention.
        workspace: Bound on the numbers of expanded keys and values held at a time.
    """
    batch, tokens, heads, width = q_BTHD.shape
    latent = up_HPc.shape[-1]
    context = entries_BSe.shape[1]
    # A kernel wants values as wide as keys, so both count at the larger width.
    per_token = batch * heads * 2 * max(width, up_HPc.shape[1] - nope)
    q_BHTD = q_BTHD.transpose(1, 2)
    parts: list[Partial] = []
    for start, stop in blocks(context - tokens, tokens, workspace // per_token):
        block_BSe = entries_BSe[:, start:stop]
        k_BSHD, v_BSHV = expand(block_BSe[..., :latent], block_BSe[..., latent:], up_HPc, nope)
        # The new tokens' own keys; in one block they need no mask.
        is_own = stop > context - tokens
        is_square = stop - start == tokens
        seen = None if mask is None else mask[..., start:stop]
        if seen is None and is_own and not is_square:
            seen = _causal_block(tokens, context, start, stop, q_BTHD)
        parts.append(
            partial_attention(
                q_BHTD,
                k_BSHD.transpose(1, 2),
                v_BSHV.transpose(1, 2),
                scale=scale,
                is_causal=is_own and seen is None,
                mask=seen,
            )
        )
    return merge(parts).transpose(1, 2)


def absorbed(
    q_BTHD: torch.Tensor,
    entries_BSe: torch.Tensor,
    up_HPc: torch.Tensor,
    *,
    nope: int,
    scale: float,
    mask: torch.Tensor | None = None,
    workspace: int = WORKSPACE,
) -> torch.Tensor:
    """Attention to the latents themselves: [B, T, H, V]; arguments as of `expanded`."""
    batch, tokens, heads, width = q_BTHD.shape
    if tokens == 1 and (
        q_BTHD.device.type == "cpu" or batch * heads * entries_BSe.shape[1] <= workspace
    ):
        return _absorbed_token(q_BTHD[:, 0], entries_BSe, up_HPc, nope, scale, mask)[:, None]
    latent, context = up_HPc.shape[-1], entries_BSe.shape[1]
    rotary_BHTR, nope_BHTN = torch.split(q_BTHD.transpose(1, 2), [width - nope, nope], dim=-1)
    key_HNc, value_HVc = torch.split(up_HPc, [nope, up_HPc.shape[1] - nope], dim=1)
    # All heads read one key, so heads and tokens are rows of one product.
    q_BXe = torch.cat((nope_BHTN @ key_HNc, rotary_BHTR), dim=-1).flatten(1, 2)
    keys = workspace // (batch * heads * tokens)
    parts = []
    for start, stop in blocks(0, context, keys):
        block_BSe = entries_BSe[:, start:stop]
        scores_BXS = torch.bmm(q_BXe, block_BSe.transpose(1, 2)).mul_(scale)
        scores_BHTS = torch.unflatten(scores_BXS, 1, (heads, tokens))
        if mask is not None:
            scores_BHTS = scores_BHTS + mask[..., start:stop]
        elif tokens > 1 and stop > context - tokens + 1:
            scores_BHTS = scores_BHTS + _causal_block(tokens, context, start, stop, q_BTHD)
        part = softmax_over(scores_BHTS.flatten(1, 2)[:, None], block_BSe[:, None, :, :latent])
        parts.append(part)
    z_BHTc = torch.unflatten(merge(parts)[:, 0], 1, (heads, tokens))
    return (z_BHTc @ value_HVc.transpose(-1, -2)).transpose(1, 2)


def _absorbed_token(
    q_BHD: torch.Tensor,
    entries_BSe: torch.Tensor,
    up_HPc: torch.Tensor,
    nope: int,
    scale: float,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`absorbed` for one new token of each sequence, whose heads are the rows of one query.

    The entries are keys and values alike, so that they are read once; the R columns of the output
    that are too many cost less than a copy without them.
    """
    key_HNc, value_HVc = torch.split(up_HPc, [nope, up_HPc.shape[1] - nope], dim=1)
    rotary_BHR, nope_BHN = torch.split(q_BHD, [q_BHD.shape[-1] - nope, nope], dim=-1)
    q_HBc = torch.bmm(nope_BHN.transpose(0, 1), key_HNc)
    q_B1He = torch.cat((q_HBc.transpose(0, 1), rotary_BHR), dim=-1)[:, None]
    entries_B1Se = entries_BSe[:, None]
    z_B1He = F.scaled_dot_product_attention(
        q_B1He, entries_B1Se, entries_B1Se, attn_mask=mask, scale=scale
    )
    z_HBc = z_B1He[:, 0, :, : up_HPc.shape[-1]].transpose(0, 1)
    return torch.bmm(z_HBc, value_HVc.transpose(1, 2)).transpose(0, 1)


def blocks(prefix: int, rest: int, length: int) -> list[tuple[int, int]]:
    """`prefix` keys in blocks of at most `length` (but at least a few), then the `rest` alike."""
    step = max(length, _SHORTEST_BLOCK)
    first = [(start, min(start + step, prefix)) for start in range(0, prefix, step)]
    end = prefix + rest
    return [*first, *((start, min(start + step, end)) for start in range(prefix, end, step))]


def _causal_block(
    tokens: int, context: int, start: int, stop: int, like: torch.Tensor
) -> torch.Tensor:
    """0 where new token t sees key `start` + s, -inf elsewhere: [T, s]."""
    last_T1 = torch.arange(context - tokens, context, device=like.device)[:, None]
    keys_s = torch.arange(start, stop, device=like.device)
    blocked_Ts = keys_s > last_T1
    zeros_Ts = torch.zeros(blocked_Ts.shape, dtype=like.dtype, device=like.device)
    return zeros_Ts.masked_fill_(blocked_Ts, -math.inf)
