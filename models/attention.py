"""Causal self-attention with rotary positions: multi-head, multi-query or grouped-query.

Queries, keys and values come from one fused projection whose rows are all query heads, then all key
heads, then all value heads. The products run in `scaled_dot_product_attention`, scaled by
1 / sqrt(D). No dropout. `forward` is the training and scoring path; `cached` computes a step of
generation, with keys (rotated) and values kept as `models.cache` describes.

Shapes: B batch, T tokens, d width, H query heads, K key and value heads, D head width; in a cached
step N new tokens of all sequences, S sequences of a group, M new tokens of each, L columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.cache import Kept, LayerCache, LayerLayout
from models.decoder_config import DecoderConfig
from models.initialise import linear
from models.ragged import Group
from models.rotary import RotaryTables, rotate

KEY_VALUE = "key_value"


class AttentionInputs(NamedTuple):
    """What the attention of every block shares in one forward pass."""

    rotary: RotaryTables
    mask: torch.Tensor | None
    """Additive mask [B, 1, T, T]; None for plain causal attention."""


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over the visible tokens, then the output projection."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.key_value_heads = config.key_value_heads
        self.head_width = config.head_width
        fused = (config.heads + 2 * config.key_value_heads) * config.head_width
        self.query_key_value = linear(config.width, fused, bias=config.has_biases)
        self.output = linear(config.heads * config.head_width, config.width, bias=config.has_biases)

    def forward(self, x_BTd: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        heads, shared = self.heads, self.key_value_heads
        fused_BTHD = torch.unflatten(self.query_key_value(x_BTd), -1, (-1, self.head_width))
        # Splits, not slices: the gradient of a slice is a zero-filled copy of the whole.
        qk_BTHD, v_BTKD = torch.split(fused_BTHD, [heads + shared, shared], dim=2)
        q_BTHD, k_BTKD = torch.split(rotate(qk_BTHD, inputs.rotary), [heads, shared], dim=2)
        out_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            k_BTKD.transpose(1, 2),
            v_BTKD.transpose(1, 2),
            attn_mask=inputs.mask,
            is_causal=inputs.mask is None,
            enable_gqa=self.heads != self.key_value_heads,
        )
        out_BTd: torch.Tensor = self.output(out_BHTD.transpose(1, 2).flatten(2))
        return out_BTd

    def cache_layout(self) -> LayerLayout:
        """Rotated keys, then values, of every token."""
        return LayerLayout((Kept(KEY_VALUE, 2 * self.key_value_heads * self.head_width),))

    def cached(
        self, x_Nd: torch.Tensor, rotary: RotaryTables, groups: Sequence[Group], cache: LayerCache
    ) -> torch.Tensor:
        """The output for the new tokens of a step, which are kept."""
        heads, shared = self.heads, self.key_value_heads
        fused_NHD = torch.unflatten(self.query_key_value(x_Nd), -1, (-1, self.head_width))
        qk_NHD, v_NKD = torch.split(fused_NHD, [heads + shared, shared], dim=1)
        q_NHD, k_NKD = torch.split(rotate(qk_NHD, rotary), [heads, shared], dim=1)
        cache.write(KEY_VALUE, torch.cat((k_NKD, v_NKD), dim=1).flatten(1))
        attended = [self._attend(q_NHD[group.rows], group, cache) for group in groups]
        out_Nd: torch.Tensor = self.output(torch.cat(attended).flatten(1))
        return out_Nd

    def _attend(self, q_RHD: torch.Tensor, group: Group, cache: LayerCache) -> torch.Tensor:
        """The weighted values of the rows of a group, [R, H, D]."""
        key_value = cache.read(KEY_VALUE, group)
        k_SKLD, v_SKLD = (
            torch.unflatten(key_value, -1, (2, self.key_value_heads, self.head_width))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        if group.new == 1:
            # The query heads that share a key head stand where queries of later tokens would.
            q_SKGD = torch.unflatten(q_RHD, 1, (self.key_value_heads, -1))
            mask = group.mask(q_RHD.dtype) if group.needs_mask else None
            out_SKGD = F.scaled_dot_product_attention(q_SKGD, k_SKLD, v_SKLD, attn_mask=mask)
            return out_SKGD.flatten(1, 2)
        q_SHMD = torch.unflatten(q_RHD, 0, (group.size, group.new)).transpose(1, 2)
        out_SHMD = F.scaled_dot_product_attention(
            q_SHMD,
            k_SKLD,
            v_SKLD,
            attn_mask=group.mask(q_RHD.dtype) if group.needs_mask else None,
            is_causal=group.is_plain_causal,
            enable_gqa=self.heads != self.key_value_heads,
        )
        return out_SHMD.transpose(1, 2).flatten(0, 1)
