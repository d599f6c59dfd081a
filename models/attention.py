"""Causal self-attention with rotary positions: multi-head, multi-query or grouped-query.

Queries, keys and values come from one fused projection whose rows are all query heads, then all key
heads, then all value heads. The products run in `scaled_dot_product_attention`, scaled by
1 / sqrt(D). No dropout. `forward` is the training and scoring path; `cached` computes a step of
generation, with keys (rotated) and values kept as `models.cache` describes. A position scheme with
several branches takes its own way from the projections on: `models.branch_attention` and, in
generation, `models.branch_cache`; so does a layer that sees the last tokens only:
`models.window_attention`.

Shapes: B batch, T tokens, d width, H query heads, K key and value heads, D head width; in a cached
step N new tokens of all sequences, S sequences of a group, M new tokens of each, L columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.branch_attention import BranchInputs, branch_attention
from models.branch_cache import StepScheme, branch_layout, cached_branch_attention
from models.cache import Kept, LayerCache, LayerLayout
from models.decoder_config import DecoderConfig
from models.initialise import linear
from models.merge_attention import Tile, merge_attention
from models.positions import PositionPlan, has_branches
from models.ragged import Group
from models.rotary import RotaryTables, rotate
from models.window_attention import cached_window_attention

KEY_VALUE = "key_value"


class AttentionInputs(NamedTuple):
    """What the attention of every block shares in one forward pass."""

    rotary: RotaryTables
    mask: torch.Tensor | None
    """Additive mask [B, 1, T, T]; None for plain causal attention."""
    query_factor: torch.Tensor | None = None
    """[B, T, 1, 1]: multiplies the queries; None stands for 1."""
    branches: BranchInputs | None = None
    """Positions of a scheme with several branches, in place of all the above."""
    tiles: list[Tile] | None = None
    """Of a windowed layer, in place of the mask."""


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over the visible tokens, then the output projection."""

    def __init__(self, config: DecoderConfig, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        """v, keys that a query sees; None: all."""
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
        if inputs.branches is not None:
            q_BTHD, k_BTKD = torch.split(qk_BTHD, [heads, shared], dim=2)
            out_BHTD = branch_attention(q_BTHD, k_BTKD, v_BTKD, inputs.branches)
            return self._project(out_BHTD)
        q_BTHD, k_BTKD = torch.split(rotate(qk_BTHD, inputs.rotary), [heads, shared], dim=2)
        if inputs.query_factor is not None:
            q_BTHD = q_BTHD * inputs.query_factor
        if inputs.tiles is not None:
            q_BHTD, k_BKTD, v_BKTD = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
            return self._project(merge_attention([q_BHTD], [k_BKTD], v_BKTD, inputs.tiles))
        out_BHTD = F.scaled_dot_product_attention(
            q_BTHD.transpose(1, 2),
            k_BTKD.transpose(1, 2),
            v_BTKD.transpose(1, 2),
            attn_mask=inputs.mask,
            is_causal=inputs.mask is None,
            enable_gqa=self.heads != self.key_value_heads,
        )
        return self._project(out_BHTD)

    def _project(self, out_BHTD: torch.Tensor) -> torch.Tensor:
        out_BTd: torch.Tensor = self.output(out_BHTD.transpose(1, 2).flatten(2))
        return out_BTd

    def cache_layout(self, position_plan: PositionPlan | None = None) -> LayerLayout:
        """Rotated keys, then values, of every token; or what a scheme of several branches keeps.

        A windowed layer has no scheme: the plan is that of the full ones.
        """
        width = self.key_value_heads * self.head_width
        is_full = self.window is None
        if is_full and position_plan is not None and has_branches(position_plan):
            return branch_layout(position_plan, width)
        return LayerLayout((Kept(KEY_VALUE, 2 * width),))

    def cached(
        self,
        x_Nd: torch.Tensor,
        rotary: RotaryTables,
        groups: Sequence[Group],
        cache: LayerCache,
        scheme: StepScheme | None = None,
    ) -> torch.Tensor:
        """The output for the new tokens of a step, which are kept."""
        heads, shared = self.heads, self.key_value_heads
        fused_NHD = torch.unflatten(self.query_key_value(x_Nd), -1, (-1, self.head_width))
        qk_NHD, v_NKD = torch.split(fused_NHD, [heads + shared, shared], dim=1)
        if scheme is not None and has_branches(scheme.plan):
            q_NHD, k_NKD = torch.split(qk_NHD, [heads, shared], dim=1)
            out_NHD = cached_branch_attention(q_NHD, k_NKD, v_NKD, scheme, groups, cache)
            branched_Nd: torch.Tensor = self.output(out_NHD.flatten(1))
            return branched_Nd
        q_NHD, k_NKD = torch.split(rotate(qk_NHD, rotary), [heads, shared], dim=1)
        if scheme is not None and scheme.query_factor is not None:
            q_NHD = q_NHD * scheme.query_factor
        cache.write(KEY_VALUE, torch.cat((k_NKD, v_NKD), dim=1).flatten(1))
        attended = [self._attend(q_NHD[group.rows], group, cache) for group in groups]
        out_Nd: torch.Tensor = self.output(torch.cat(attended).flatten(1))
        return out_Nd

    def _attend(self, q_RHD: torch.Tensor, group: Group, cache: LayerCache) -> torch.Tensor:
        """The weighted values of the rows of a group, [R, H, D]."""
        if self.window is not None:
            return cached_window_attention(
                q_RHD, KEY_VALUE, self.window, self.key_value_heads, group, cache
            )
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
