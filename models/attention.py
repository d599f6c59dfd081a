"""Causal self-attention with rotary positions: multi-head, multi-query or grouped-query.

Queries, keys and values come from one fused projection whose rows are all query heads, then all key
heads, then all value heads. The products run in `scaled_dot_product_attention`, scaled by
1 / sqrt(D). No dropout and no cache: this is the training and scoring path.

Shapes: B batch, T tokens, d width, H query heads, K key and value heads, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.decoder_config import DecoderConfig
from models.initialise import linear
from models.rotary import RotaryTables, rotate


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
