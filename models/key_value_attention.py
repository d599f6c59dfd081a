"""Attention from projected queries, keys and values on, for all layers that cache keys and values.

What stands before it (projections, gates, norms) is the layer's own; from here on multi-head,
grouped-query and multi-query attention and the single head of a gated attention unit are the same.
The products run in `scaled_dot_product_attention`, scaled by 1 / sqrt(D). `forward` is the training
and scoring path; `cached` computes a step of generation, with keys (rotated) and values kept as
`models.cache` describes. A position scheme with several branches takes its own way:
`models.branch_attention` and, in generation, `models.branch_cache`; so does a layer that sees the
last tokens only: `models.window_attention`.

Shapes: B batch, T tokens, H query heads, K key and value heads, D width of a key, V width of a
value; in a cached step N new tokens of all sequences, S sequences of a group, M new tokens of each,
R = S M, L columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.branch_attention import BranchInputs, branch_attention
from models.branch_cache import StepScheme, branch_layout, cached_branch_attention
from models.cache import Kept, LayerCache, LayerLayout
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


@dataclass(frozen=True)
class KeyValueAttention:
    """softmax(q k^T / sqrt(D)) v over the visible tokens."""

    heads: int
    """H."""
    shared: int
    """K."""
    key_width: int
    """D."""
    value_width: int
    """V."""
    window: int | None = None
    """v, keys that a query sees; None: all."""

    def forward(
        self, qk_BTHD: torch.Tensor, v_BTKV: torch.Tensor, inputs: AttentionInputs
    ) -> torch.Tensor:
        """The weighted values [B, H, T, V].

        Args:
            qk_BTHD: Query heads, then key heads, not rotated: H + K of them.
            v_BTKV: Values.
            inputs: Positions and masks.
        """
        sizes = [self.heads, self.shared]
        if inputs.branches is not None:
            q_BTHD, k_BTKD = torch.split(qk_BTHD, sizes, dim=2)
            return branch_attention(q_BTHD, k_BTKD, v_BTKV, inputs.branches)
        q_BTHD, k_BTKD = torch.split(rotate(qk_BTHD, inputs.rotary), sizes, dim=2)
        if inputs.query_factor is not None:
            q_BTHD = q_BTHD * inputs.query_factor
        q_BHTD, k_BKTD, v_BKTV = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKV))
        if inputs.tiles is not None:
            return merge_attention([q_BHTD], [k_BKTD], v_BKTV, inputs.tiles)
        return F.scaled_dot_product_attention(
            q_BHTD,
            k_BKTD,
            v_BKTV,
            attn_mask=inputs.mask,
            is_causal=inputs.mask is None,
            enable_gqa=self.heads != self.shared,
        )

    def cache_layout(self, position_plan: PositionPlan | None = None) -> LayerLayout:
        """Rotated keys, then values, of every token; or what a scheme of several branches keeps.

        A windowed layer has no scheme: the plan is that of the full ones.
        """
        key_width, value_width = self.shared * self.key_width, self.shared * self.value_width
        is_full = self.window is None
        if is_full and position_plan is not None and has_branches(position_plan):
            return branch_layout(position_plan, key_width, value_width)
        return LayerLayout((Kept(KEY_VALUE, key_width + value_width),))

    def cached(
        self,
        qk_NHD: torch.Tensor,
        v_NKV: torch.Tensor,
        rotary: RotaryTables,
        groups: Sequence[Group],
        cache: LayerCache,
        scheme: StepScheme | None = None,
    ) -> torch.Tensor:
        """The weighted values [N, H, V] of the new tokens of a step, which are kept.

        Args:
            qk_NHD: Query heads, then key heads, not rotated.
            v_NKV: Values.
            rotary: Of the new tokens.
            groups: The sequences.
            cache: That of the layer.
            scheme: In place of plain rotary positions.
        """
        sizes = [self.heads, self.shared]
        if scheme is not None and has_branches(scheme.plan):
            q_NHD, k_NKD = torch.split(qk_NHD, sizes, dim=1)
            return cached_branch_attention(q_NHD, k_NKD, v_NKV, scheme, groups, cache)
        q_NHD, k_NKD = torch.split(rotate(qk_NHD, rotary), sizes, dim=1)
        if scheme is not None and scheme.query_factor is not None:
            q_NHD = q_NHD * scheme.query_factor
        cache.write(KEY_VALUE, torch.cat((k_NKD.flatten(1), v_NKV.flatten(1)), dim=1))
        attended = [self._attend(q_NHD[group.rows], group, cache) for group in groups]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _attend(self, q_RHD: torch.Tensor, group: Group, cache: LayerCache) -> torch.Tensor:
        """The weighted values of the rows of a group, [R, H, V]."""
        if self.window is not None:
            return cached_window_attention(q_RHD, KEY_VALUE, self.window, self.shared, group, cache)
        k_SKLD, v_SKLV = self._read(group, cache)
        if group.new == 1:
            # The query heads that share a key head stand where queries of later tokens would.
            q_SKGD = torch.unflatten(q_RHD, 1, (self.shared, -1))
            mask = group.mask(q_RHD.dtype) if group.needs_mask else None
            out_SKGV = F.scaled_dot_product_attention(q_SKGD, k_SKLD, v_SKLV, attn_mask=mask)
            return out_SKGV.flatten(1, 2)
        q_SHMD = torch.unflatten(q_RHD, 0, (group.size, group.new)).transpose(1, 2)
        out_SHMV = F.scaled_dot_product_attention(
            q_SHMD,
            k_SKLD,
            v_SKLV,
            attn_mask=group.mask(q_RHD.dtype) if group.needs_mask else None,
            is_causal=group.is_plain_causal,
            enable_gqa=self.heads != self.shared,
        )
        return out_SHMV.transpose(1, 2).flatten(0, 1)

    def _read(self, group: Group, cache: LayerCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [S, K, L, D] and values [S, K, L, V] of a group; views."""
        sizes = [self.shared * self.key_width, self.shared * self.value_width]
        k_SLw, v_SLw = torch.split(cache.read(KEY_VALUE, group), sizes, dim=-1)
        k_SKLD = torch.unflatten(k_SLw, -1, (self.shared, -1)).transpose(1, 2)
        return k_SKLD, torch.unflatten(v_SLw, -1, (self.shared, -1)).transpose(1, 2)
