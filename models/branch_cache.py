"""Generation under a position scheme with several branches: what is cached, and a step over it.

A windowed scheme caches for every token its *far* key and its value, and for the last w tokens of a
sequence the *near* key in a ring. Both keys are written once and never turned again, because
neither depends on how long the sequence becomes:

    rerope         far key k_j, not turned at all      near key R_j k_j
    leaky          far key R_{j/k} k_j                 near key R_j k_j
    self_extend    far key R_{floor(j/G)} k_j          near key R_j k_j

A step at position i attends with R_w q_i to the far keys 0 .. i-w and with R_i q_i to the ring; the
two merge by their log-sum-exp into one softmax (`models.merge_attention`). So a token costs a
constant number of rotations however long the context is, and the memory beyond that of rotary
attention is w keys.

Dual chunks cache one key, at j mod c, and ask for it with three queries.

Latent attention in its absorbed form is attention with one key head whose key is [k^R; c] and whose
value is the c in it. So it keeps no value of its own, and the ring has k^R alone.

The ring is rebuilt from the far keys where a sequence took its cached tokens over from another one
(`models.cache`): R_j k_j is the far key turned by the difference of the two positions.

Shapes: N new tokens of the step, S sequences of a group, M new tokens of each, L columns, H query
heads, K key heads, G = H / K, W slots of the ring, D width of a key, V of a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models import positions
from models.branch_attention import BranchTables, branch_tables
from models.cache import CacheStep, Kept, LayerCache, LayerLayout, Ring
from models.merge_attention import Tile, later_tiles, merge_tiles, plain_tiles
from models.partial_attention import pad_to_width
from models.positions import PositionPlan
from models.ragged import Group
from models.rotary import rotate

FAR_KEY, VALUE, NEAR_KEY = "far_key", "value", "near_key"


@dataclass(frozen=True)
class StepScheme:
    """A plan and its tables for the new tokens of one step; shared by all layers."""

    plan: PositionPlan
    branches: tuple[BranchTables, ...]
    query_factor: torch.Tensor | None
    """Log-n factor of each new token, [N, 1, 1]; None stands for 1."""


def step_scheme(position_plan: PositionPlan, step: CacheStep, dtype: torch.dtype) -> StepScheme:
    """The tables for the new tokens of `step`."""
    at_N = step.positions_N
    tables = [
        branch_tables(position_plan, branch, at_N, dtype)
        for branch in positions.branches(position_plan)
    ]
    factor = None
    if position_plan.scheme.log_n != "none":
        factor = positions.log_n_factor(position_plan, at_N + 1).to(dtype)[:, None, None]
    return StepScheme(position_plan, tuple(tables), factor)


def branch_layout(
    position_plan: PositionPlan, key_width: int, value_width: int, latent: int = 0
) -> LayerLayout:
    """What a layer keeps under a plan with several branches.

    Args:
        position_plan: A plan.
        key_width: K D.
        value_width: K times the width of a value.
        latent: Width of the latent at the end of its one key, where that is the value; 0: none.
    """
    tokens = (Kept(FAR_KEY, key_width), *(() if latent else (Kept(VALUE, value_width),)))
    if position_plan.scheme.name == "dca":
        return LayerLayout(tokens)
    return LayerLayout(tokens, (Ring(NEAR_KEY, key_width - latent, _slots(position_plan)),))


@dataclass(frozen=True)
class _Heads:
    """Keys and values of a layer as attention wants them."""

    cache: LayerCache
    shared: int
    """K."""
    latent: int
    """Of `branch_layout`."""

    def write(self, far_key_NKD: torch.Tensor, v_NKV: torch.Tensor) -> None:
        self.cache.write(FAR_KEY, far_key_NKD.flatten(1))
        if not self.latent:
            self.cache.write(VALUE, v_NKV.flatten(1))

    def write_ring(self, near_key_NKD: torch.Tensor) -> None:
        turned = near_key_NKD.shape[-1] - self.latent
        self.cache.write_ring(NEAR_KEY, near_key_NKD[..., :turned].flatten(1))

    def far(self, group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        """Far keys [S, K, L, D] and values [S, K, L, V] of a group."""
        far_SKLD = _heads(self.cache.read(FAR_KEY, group), self.shared)
        if self.latent:
            return far_SKLD, far_SKLD[..., -self.latent :]
        return far_SKLD, _heads(self.cache.read(VALUE, group), self.shared)

    def near(self, ring_SWw: torch.Tensor, v_SKWV: torch.Tensor) -> torch.Tensor:
        """Near keys [S, K, W, D] from slots of the ring and the values of the same tokens."""
        ring_SKWw = _heads(ring_SWw, self.shared)
        return torch.cat((ring_SKWw, v_SKWV), dim=-1) if self.latent else ring_SKWw


def _slots(position_plan: PositionPlan) -> int:
    """W: no more than a sequence can have tokens."""
    return min(position_plan.window, position_plan.length)


def cached_branch_attention(
    q_NHD: torch.Tensor,
    k_NKD: torch.Tensor,
    v_NKD: torch.Tensor,
    scheme: StepScheme,
    groups: Sequence[Group],
    cache: LayerCache,
    latent: int = 0,
) -> torch.Tensor:
    """Output [N, H, D] for raw queries and keys of the new tokens, which are kept.

    With `latent` as of `branch_layout` the values must be the ends of the keys; output [N, H, V].
    """
    layout = scheme.plan.layout
    if scheme.query_factor is not None:
        q_NHD = q_NHD * scheme.query_factor
    queries = [rotate(q_NHD, branch.query, layout) for branch in scheme.branches]
    heads = _Heads(cache, k_NKD.shape[1], latent)
    far = scheme.branches[-1].key
    heads.write(k_NKD if far is None else rotate(k_NKD, far, layout), v_NKD)
    if scheme.plan.scheme.name == "dca":
        return torch.cat([_chunked(queries, scheme.plan, group, heads) for group in groups])
    near = scheme.branches[0].key
    assert near is not None
    near_key_NKD = rotate(k_NKD, near, layout)
    _rebuild_rings(scheme.plan, k_NKD, groups, heads)
    # Prompts read the ring as it was before their own tokens, single tokens as it is after.
    outputs: list[torch.Tensor | None] = [None] * len(groups)
    for index, group in enumerate(groups):
        if group.new > 1:
            outputs[index] = _prompt(queries, near_key_NKD, scheme.plan, group, heads)
    heads.write_ring(near_key_NKD)
    for index, group in enumerate(groups):
        if group.new == 1:
            outputs[index] = _token(queries, scheme.plan, group, heads)
    return torch.cat([out for out in outputs if out is not None])


def _token(
    queries: list[torch.Tensor], position_plan: PositionPlan, group: Group, heads: _Heads
) -> torch.Tensor:
    """The output for one new token of each sequence: [S, H, V]."""
    w, shared = position_plan.window, heads.shared
    # The query heads that share a key head stand where queries of later tokens would.
    queries_SKGD = [torch.unflatten(q_NHD[group.rows], 1, (shared, -1)) for q_NHD in queries]
    rows = slice(0, queries_SKGD[0].shape[2])
    ring = heads.cache.ring(NEAR_KEY, group)
    far_SKLD, v_SKLV = heads.far(group)
    slots = ring.rows.shape[1]
    is_full = min(group.past) + 1 >= slots
    values_SLKV = v_SKLV.transpose(1, 2)
    if group.size == 1 and is_full:
        # Slots hold positions in two runs, the newest token at the end of the first.
        end = group.past[0] + 1
        middle = end - (group.past[0] % slots + 1)
        near_v_SWKV = torch.cat(
            (values_SLKV[:, middle:end], values_SLKV[:, end - slots : middle]), dim=1
        )
    else:
        at_SW = ring.positions.clamp(min=0)
        near_v_SWKV = values_SLKV[torch.arange(group.size, device=at_SW.device)[:, None], at_SW]
    near_v_SKWV = near_v_SWKV.transpose(1, 2)
    near_mask = None if is_full else _closed(ring.positions < 0, rows.stop, v_SKLV)
    tiles = [Tile(0, rows, slice(0, slots), False, near_mask)]
    beyond = max(group.past) - w + 1
    if beyond > 0:
        far_mask = None
        if min(group.past) < max(group.past):
            columns = torch.arange(beyond, device=v_SKLV.device)
            far_mask = _closed(columns > group.query_positions() - w, rows.stop, v_SKLV)
        tiles.append(Tile(1, rows, slice(0, beyond), False, far_mask))
    keys = [heads.near(ring.rows, near_v_SKWV), far_SKLD]
    return _merged(queries_SKGD, keys, [near_v_SKWV, v_SKLV], tiles).flatten(1, 2)


def _merged(
    queries: list[torch.Tensor],
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    tiles: Sequence[Tile],
) -> torch.Tensor:
    """`merge_tiles` with values made as wide as the keys, which fused kernels ask for.

    Wider ones stay: the kernel for them takes any width.
    """
    width = max(keys[0].shape[-1], values[0].shape[-1])
    out, _ = merge_tiles(queries, keys, [pad_to_width(v, width) for v in values], tiles)
    return out[..., : values[0].shape[-1]]


def _closed(hidden_SL: torch.Tensor, rows: int, like: torch.Tensor) -> torch.Tensor:
    """An additive mask, the same for all rows: [S, 1, rows, L]."""
    mask_SL = like.new_zeros(hidden_SL.shape).masked_fill_(hidden_SL, -math.inf)
    return mask_SL[:, None, None].expand(-1, -1, rows, -1)


def _prompt(
    queries: list[torch.Tensor],
    near_key_NKD: torch.Tensor,
    position_plan: PositionPlan,
    group: Group,
    heads: _Heads,
) -> torch.Tensor:
    """The output for several new tokens of each of equally long sequences: [S * M, H, V]."""
    past = group.past[0]
    near_q, far_q = (_of_group(q, group).transpose(1, 2) for q in queries)
    near_keys = _of_group(near_key_NKD, group).transpose(1, 2)
    far_SKLD, v_SKLV = heads.far(group)
    first = max(past - position_plan.window + 1, 0)
    if first < past:
        ring = heads.cache.ring(NEAR_KEY, group)
        slots = torch.arange(first, past, device=ring.rows.device) % ring.rows.shape[1]
        before = heads.near(ring.rows[:, slots], v_SKLV[:, :, first:past])
        near_keys = torch.cat((before, near_keys), dim=2)
    like = near_q.new_empty(0)
    out_SHMV = _merged(
        [near_q, far_q],
        [near_keys, far_SKLD],
        [v_SKLV[:, :, first:], v_SKLV],
        later_tiles(position_plan, past, group.new, like)
        if past
        else plain_tiles(position_plan, group.new, like),
    )
    return out_SHMV.transpose(1, 2).flatten(0, 1)


def _chunked(
    queries: list[torch.Tensor], position_plan: PositionPlan, group: Group, heads: _Heads
) -> torch.Tensor:
    """Dual chunks: three queries for the same keys, selected by the chunk of the key."""
    shared = heads.shared
    k_SK1LD, v_SK1LD = (x[:, :, None] for x in heads.far(group))
    at_SM1 = group.query_positions()[..., None]
    columns = torch.arange(group.longest, device=k_SK1LD.device)
    logits = k_SK1LD.new_full((), -math.inf)
    for branch, q_NHD in zip(positions.branches(position_plan), queries, strict=True):
        q_SKGMD = torch.unflatten(_of_group(q_NHD, group).transpose(1, 2), 1, (shared, -1))
        seen_SML = positions.visible(position_plan, branch, at_SM1, columns)
        seen = seen_SML[:, None, None] & (columns <= at_SM1)[:, None, None]
        scores = (q_SKGMD @ k_SK1LD.mT) / math.sqrt(q_SKGMD.shape[-1])
        logits = torch.where(seen, scores, logits)
    weights = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    out_SKGMD = weights.to(v_SK1LD.dtype) @ v_SK1LD
    return out_SKGMD.flatten(1, 2).transpose(1, 2).flatten(0, 1)


def _rebuild_rings(
    position_plan: PositionPlan,
    like_NKD: torch.Tensor,
    groups: Sequence[Group],
    heads: _Heads,
) -> None:
    """Fill the rings of sequences whose cached tokens were computed for another sequence."""
    for group in groups:
        for index, sequence in enumerate(range(group.sequences.start, group.sequences.stop)):
            past = group.past[index]
            if not heads.cache.ring_is_stale(sequence) or past == 0:
                continue
            at = torch.arange(max(past - _slots(position_plan), 0), past, device=like_NKD.device)
            far_keys_TKD = heads.far(group)[0][index].transpose(0, 1)[at]
            turn = positions.key_positions(position_plan, "near", at).double()
            turn = turn - positions.key_positions(position_plan, "far", at).double()
            dtype = like_NKD.dtype
            tables = positions.tables(position_plan, turn, dtype=dtype, is_scaled=False)
            turned = far_keys_TKD.shape[-1] - heads.latent
            near_keys_TKw = rotate(far_keys_TKD, tables, position_plan.layout)[..., :turned]
            heads.cache.fill_ring(NEAR_KEY, sequence, near_keys_TKw.flatten(1))


def _of_group(x_NHD: torch.Tensor, group: Group) -> torch.Tensor:
    """[S, M, H, D]."""
    return torch.unflatten(x_NHD[group.rows], 0, (group.size, group.new))


def _heads(rows_SLw: torch.Tensor, shared: int) -> torch.Tensor:
    """[S, K, L, D], a view."""
    return torch.unflatten(rows_SLw, -1, (shared, -1)).transpose(1, 2)
