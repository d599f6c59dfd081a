"""Causal self-attention with rotary positions: multi-head, multi-query or grouped-query.

Queries, keys and values come from one fused projection whose rows are all query heads, then all key
heads, then all value heads; what follows is `models.key_value_attention`. No dropout.

Shapes: B batch, T tokens, d width, H query heads, K key and value heads, D head width; in a cached
step N new tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.branch_cache import StepScheme
from models.cache import LayerCache, LayerLayout
from models.decoder_config import DecoderConfig
from models.initialise import linear
from models.key_value_attention import AttentionInputs, KeyValueAttention
from models.positions import PositionPlan
from models.ragged import Group
from models.rotary import RotaryTables


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over the visible tokens, then the output projection."""

    def __init__(self, config: DecoderConfig, window: int | None = None) -> None:
        """Make it without numbers; `window` is how many keys a query sees, None for all."""
        super().__init__()
        width = config.head_width
        self.inner = KeyValueAttention(
            config.heads, config.key_value_heads, key_width=width, value_width=width, window=window
        )
        fused = (config.heads + 2 * config.key_value_heads) * width
        self.query_key_value = linear(config.width, fused, bias=config.has_biases)
        self.output = linear(config.heads * width, config.width, bias=config.has_biases)

    def forward(self, x_BTd: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        qk_BTHD, v_BTKD = self._projected(x_BTd)
        out_BHTD = self.inner.forward(qk_BTHD, v_BTKD, inputs)
        out_BTd: torch.Tensor = self.output(out_BHTD.transpose(1, 2).flatten(2))
        return out_BTd

    def cache_layout(self, position_plan: PositionPlan | None = None) -> LayerLayout:
        """What is kept, see `KeyValueAttention.cache_layout`."""
        return self.inner.cache_layout(position_plan)

    def cached(
        self,
        x_Nd: torch.Tensor,
        rotary: RotaryTables,
        groups: Sequence[Group],
        cache: LayerCache,
        scheme: StepScheme | None = None,
    ) -> torch.Tensor:
        """The output for the new tokens of a step, which are kept."""
        out_NHD = self.inner.cached(*self._projected(x_Nd), rotary, groups, cache, scheme)
        out_Nd: torch.Tensor = self.output(out_NHD.flatten(1))
        return out_Nd

    def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key heads [..., H + K, D], and value heads [..., K, D]."""
        heads = torch.unflatten(self.query_key_value(x), -1, (-1, self.inner.key_width))
        sizes = [self.inner.heads + self.inner.shared, self.inner.shared]
        # Splits, not slices: the gradient of a slice is a zero-filled copy of the whole.
        qk, v = torch.split(heads, sizes, dim=-2)
        return qk, v
