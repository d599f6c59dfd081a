"""Causal attention to the last v tokens: the windowed layers of a hybrid decoder.

A windowed layer is the near branch of ReRoPE without a far one: query i sees the keys j with
i - v < j <= i, at plain rotary positions. So it runs on the near tiles of `models.merge_attention`,
forward and backward, and no T x T mask exists. In generation it keeps keys and values of all tokens
like a full layer, because a sequence may take its beginning over from another one, but reads only
the last v: a token costs O(v) however long the context is.

The position scheme of the full layers changes nothing here, and neither does their log-n scaling:
it makes up for a softmax over ever more keys, and a windowed layer never sees more than v.

Shapes: B batch, T tokens; in a cached step S sequences of a group, M new tokens of each, R = S M,
C columns that are read, H query heads, K key heads, G = H / K, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.cache import LayerCache
from models.merge_attention import (
    Tile,
    additive,
    later_near_tiles,
    merge_tiles,
    near_block,
    near_tiles,
)
from models.ragged import Group


def window_tiles(
    window: int, length: int, segments_BT: torch.Tensor | None, like: torch.Tensor
) -> list[Tile]:
    """The pairs that windowed attention sees, for `models.merge_attention`.

    Args:
        window: v.
        length: T.
        segments_BT: The document of each token, -1 for padding; None where every row is one
            document.
        like: Gives the masks their dtype and device.
    """
    if segments_BT is None:
        return near_tiles(window, length, like)
    at_T = torch.arange(length, device=segments_BT.device)
    block = near_block(window)
    tiles = []
    for start in range(0, length, block):
        rows = slice(start, min(start + block, length))
        keys = slice(max(start - window + 1, 0), rows.stop)
        distance = at_T[rows, None] - at_T[keys]
        seen = (distance >= 0) & (distance < window)
        seen = seen & (segments_BT[:, rows, None] == segments_BT[:, None, keys])
        tiles.append(Tile(0, rows, keys, False, additive(seen, like)[:, None]))
    return tiles


def cached_window_attention(
    q_RHD: torch.Tensor, name: str, window: int, shared: int, group: Group, cache: LayerCache
) -> torch.Tensor:
    """The output [R, H, D] for the new tokens of a group, whose keys and values are cached.

    Args:
        q_RHD: Rotated queries.
        name: Under which rotated keys, then values, are cached.
        window: v.
        shared: K.
        group: The sequences.
        cache: That of the layer.
    """
    key_value_SCw = cache.read_last(name, group, window - 1 + group.new)
    k_SKCD, v_SKCD = (
        torch.unflatten(key_value_SCw, -1, (2, shared, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    )
    if group.new == 1:
        # The query heads that share a key head stand where queries of later tokens would.
        q_SKGD = torch.unflatten(q_RHD, 1, (shared, -1))
        mask = _unwritten(group, k_SKCD)
        out_SKGD = F.scaled_dot_product_attention(q_SKGD, k_SKCD, v_SKCD, attn_mask=mask)
        return out_SKGD.flatten(1, 2)
    # Sequences with several new tokens are in one group only if they are equally long.
    past = group.past[0]
    q_SHMD = torch.unflatten(q_RHD, 0, (group.size, group.new)).transpose(1, 2)
    like = q_RHD.new_empty(0)
    tiles = (
        later_near_tiles(window, past, group.new, like)
        if past
        else near_tiles(window, group.new, like)
    )
    out_SHMD, _ = merge_tiles([q_SHMD], [k_SKCD], [v_SKCD], tiles)
    return out_SHMD.transpose(1, 2).flatten(0, 1)


def _unwritten(group: Group, k_SKCD: torch.Tensor) -> torch.Tensor | None:
    """Closes the columns that a shorter sequence does not have, [S, 1, 1, C]; None: it has all."""
    columns = k_SKCD.shape[2]
    if min(group.past) + 1 >= columns:
        return None
    return additive(group.last_positions(columns) >= 0, k_SKCD)[:, None, None]
