"""Attention whose pairs have several kinds of positions, in one pass over the pairs.

A scheme with a near and a far branch (`models.positions`) has two logits for every pair and keeps
one. Computing both maps and selecting costs twice the work and a T x T matrix. It is not needed:
each branch is ordinary attention over its own pairs with its own rotated queries and keys, and the
outputs of the branches merge by their log-sum-exp l,

    l* = logaddexp(l1, l2),     O = e^(l1 - l*) O1 + e^(l2 - l*) O2.

The pairs of a branch are cut into *tiles*, rectangles of queries and keys that a kernel of
`models.tile_kernels` computes:

* near (r < w): one causal tile for the first w queries, then blocks of queries against the keys of
  their windows;
* far (r >= w): ONE causal tile. With i' = i - w the condition j <= i - w is j <= i', so it is plain
  causal attention between the queries from w on and the keys up to n - w;
* dual chunks: for each chunk of queries a causal tile, the chunk before, and all chunks earlier.

Together the tiles evaluate each of the n (n + 1) / 2 causal pairs once, apart from what their masks
hide. With packed documents, left padding or shifted positions the tiles are the same rectangles
under masks that close what a query may not see.

Backward: every tile's own backward pass is given the global l* and the merged output, which makes
its gradients exact parts of the whole; no gradient flows through the merge weights. Rotations are
outside, so autograd turns the gradients back.

Shapes: B batch, H query heads, K key heads, T tokens, D head width, V width of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from models import positions
from models.positions import Branch, PositionPlan
from models.tile_kernels import TileOutput, kernel_for

_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 256
"""Bounds of the queries of a near tile: smaller waste less of the window, larger call less often.
Measured with one thread at T = 4096, w = 512: 64 to 128 are the fastest."""


class Tile(NamedTuple):
    """A rectangle of pairs of one branch."""

    branch: int
    """Index into the branches of the plan."""
    queries: slice
    keys: slice
    is_causal: bool
    """Whether key number s of the tile is visible to query number t for s <= t only."""
    mask: torch.Tensor | None
    """Additive [B or 1, 1, queries, keys]; None where everything is visible but for causality."""

    def visible_pairs(self) -> int:
        """Pairs that are not hidden, counted in the mask of one row of the batch."""
        if self.mask is not None:
            return int(torch.count_nonzero(self.mask[0, 0] == 0.0))
        rows: int = self.queries.stop - self.queries.start
        columns: int = self.keys.stop - self.keys.start
        if not self.is_causal:
            return rows * columns
        return sum(min(row + 1, columns) for row in range(rows))


def plain_tiles(position_plan: PositionPlan, length: int, like: torch.Tensor) -> list[Tile]:
    """The tiles of one document of `length` tokens a row, that starts at position 0.

    Args:
        position_plan: A plan with several branches.
        length: T.
        like: Gives the masks their dtype and device.
    """
    if position_plan.scheme.name == "dca":
        return _chunk_tiles(position_plan.chunk_length, length)
    w = position_plan.window
    tiles = near_tiles(w, length, like)
    if length > w:
        tiles.append(Tile(1, slice(w, length), slice(0, length - w), True, None))
    return tiles


def near_tiles(window: int, length: int, like: torch.Tensor) -> list[Tile]:
    """The near part of `plain_tiles`: causal attention to the last `window` keys."""
    w = min(window, length)
    tiles = [Tile(0, slice(0, w), slice(0, w), True, None)]
    block = near_block(w)
    shared = _near_mask(block, w, like)
    for start in range(w, length, block):
        stop = min(start + block, length)
        rows = stop - start
        mask = shared[..., :rows, : rows + w - 1]
        tiles.append(Tile(0, slice(start, stop), slice(start - w + 1, stop), False, mask))
    return tiles


def near_block(window: int) -> int:
    """Queries of a near tile."""
    return min(max(window // 4, _SMALLEST_BLOCK), _LARGEST_BLOCK)


def _near_mask(rows: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """For queries against all keys in their windows: [1, 1, rows, rows + w - 1]."""
    query_at = torch.arange(rows, device=like.device)[:, None] + window - 1
    distance = query_at - torch.arange(rows + window - 1, device=like.device)
    return additive((distance >= 0) & (distance < window), like)[None, None]


def _chunk_tiles(chunk: int, length: int) -> list[Tile]:
    tiles = []
    for start in range(0, length, chunk):
        rows = slice(start, min(start + chunk, length))
        tiles.append(Tile(0, rows, rows, True, None))
        if start >= chunk:
            tiles.append(Tile(1, rows, slice(start - chunk, start), False, None))
        if start >= 2 * chunk:
            tiles.append(Tile(2, rows, slice(0, start - chunk), False, None))
    return tiles


def later_tiles(position_plan: PositionPlan, past: int, new: int, like: torch.Tensor) -> list[Tile]:
    """The tiles of `new` queries that follow `past` tokens, under a windowed scheme.

    Columns of the near branch count from the first key that the first query's window holds, those
    of the far branch from position 0.

    Args:
        position_plan: A plan with a window.
        past: Tokens before the queries.
        new: Queries.
        like: Gives the masks their dtype and device.
    """
    w = position_plan.window
    tiles = later_near_tiles(w, past, new, like)
    for start in range(0, new, _LARGEST_BLOCK):
        rows = slice(start, min(start + _LARGEST_BLOCK, new))
        at, end = past + rows.start, past + rows.stop
        query_at = torch.arange(at, end, device=like.device)[:, None]
        # All queries of the block see what the first one sees; the others a little more each.
        common, last = max(at - w + 1, 0), max(end - w, 0)
        if common:
            tiles.append(Tile(1, rows, slice(0, common), False, None))
        if last > common:
            edge = query_at - torch.arange(common, last, device=like.device) >= w
            tiles.append(
                Tile(1, rows, slice(common, last), False, additive(edge, like)[None, None])
            )
    return tiles


def later_near_tiles(window: int, past: int, new: int, like: torch.Tensor) -> list[Tile]:
    """The near part of `later_tiles`: causal attention to the last `window` keys."""
    first = max(past - window + 1, 0)
    tiles = []
    for start in range(0, new, _LARGEST_BLOCK):
        rows = slice(start, min(start + _LARGEST_BLOCK, new))
        query_at = torch.arange(past + rows.start, past + rows.stop, device=like.device)[:, None]
        keys = slice(max(past + rows.start - window + 1, 0), past + rows.stop)
        distance = query_at - torch.arange(keys.start, keys.stop, device=like.device)
        mask = additive((distance >= 0) & (distance < window), like)[None, None]
        tiles.append(Tile(0, rows, slice(keys.start - first, keys.stop - first), False, mask))
    return tiles


def masked_tiles(
    position_plan: PositionPlan,
    positions_BT: torch.Tensor,
    segments_BT: torch.Tensor | None,
    like: torch.Tensor,
) -> list[Tile]:
    """The tiles of rows with several documents, padding, or another start than 0.

    Args:
        position_plan: A plan with several branches.
        positions_BT: Positions, rising by one inside a document; B may be 1.
        segments_BT: The document of each token, or None where a row is one document.
        like: Gives the masks their dtype and device.
    """
    length = positions_BT.shape[1]
    step = torch.arange(length, device=positions_BT.device)
    window = position_plan.scheme.window
    block = _LARGEST_BLOCK if window is None else max(window // 4, _SMALLEST_BLOCK)
    tiles = []
    for index, branch in enumerate(positions.branches(position_plan)):
        for start in range(0, length, block):
            rows = slice(start, min(start + block, length))
            keys = _reachable(branch, rows, window)
            if keys.stop <= keys.start:
                continue
            seen = positions.visible(
                position_plan, branch, positions_BT[:, rows, None], positions_BT[:, None, keys]
            )
            seen = seen & (step[rows, None] >= step[None, keys])
            if segments_BT is not None:
                seen = seen & (segments_BT[:, rows, None] == segments_BT[:, None, keys])
            if bool(seen.any()):
                tiles.append(Tile(index, rows, keys, False, additive(seen, like)[:, None]))
    return tiles


def _reachable(branch: Branch, rows: slice, window: int | None) -> slice:
    """The keys that any of the queries can see in a branch, whatever the documents."""
    if branch == "near":
        assert window is not None
        return slice(max(rows.start - window + 1, 0), rows.stop)
    if branch == "far":
        assert window is not None
        return slice(0, max(rows.stop - window, 0))
    return slice(0, rows.stop)


def additive(seen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """0 where something is seen, -inf elsewhere, of the dtype and device of `like`; same shape."""
    return like.new_zeros(seen.shape).masked_fill_(~seen, -math.inf)


def merge_attention(
    queries: Sequence[torch.Tensor],
    keys: Sequence[torch.Tensor],
    v_BKTV: torch.Tensor,
    tiles: Sequence[Tile],
) -> torch.Tensor:
    """softmax over all visible keys, each pair with the logit of the branch it belongs to.

    Args:
        queries: For each branch the queries at its positions, [B, H, T, D].
        keys: For each branch the keys at its positions, [B, K, T, D].
        v_BKTV: Values.
        tiles: From `plain_tiles` or `masked_tiles`.

    Returns:
        [B, H, T, V]; zeros for a query that sees nothing.
    """
    # The meta device has shapes and no arithmetic, so autocast does not know it.
    device = "cpu" if v_BKTV.is_meta else v_BKTV.device.type
    given = [v_BKTV, *queries, *keys]
    if torch.is_autocast_enabled(device):
        given = [tensor.to(torch.get_autocast_dtype(device)) for tensor in given]
    apply: Callable[..., torch.Tensor] = _Merge.apply
    with torch.autocast(device, enabled=False):
        return apply(list(tiles), *given)


def merge_tiles(
    queries: Sequence[torch.Tensor],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    tiles: Sequence[Tile],
) -> TileOutput:
    """`merge_attention` without gradients, with the log-sum-exp and values for each branch."""
    kernel = kernel_for(queries[0], values[0])
    # Half precision merges in float32, as the kernels inside.
    dtype = torch.promote_types(values[0].dtype, torch.float32)
    shape = queries[0].shape[:-1]
    rest = list(tiles)

    def of(tile: Tile) -> TileOutput:
        branch, rows, columns, is_causal, mask = tile
        return kernel.forward(
            queries[branch][:, :, rows],
            keys[branch][:, :, columns],
            values[branch][:, :, columns],
            mask,
            is_causal,
        )

    if rest and rest[0].queries == slice(0, shape[-1]):
        out, lse = (x.to(dtype) for x in of(rest.pop(0)))
    else:
        out = queries[0].new_zeros(*shape, values[0].shape[-1], dtype=dtype)
        lse = queries[0].new_full(shape, -math.inf, dtype=dtype)
    for tile in rest:
        _merge_rows(out[:, :, tile.queries], lse[:, :, tile.queries], *of(tile))
    return out.to(values[0].dtype), lse


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tiles: list[Tile], v: torch.Tensor, *queries_and_keys: torch.Tensor
    ) -> torch.Tensor:
        branches = len(queries_and_keys) // 2
        queries, keys = queries_and_keys[:branches], queries_and_keys[branches:]
        out, lse = merge_tiles(queries, keys, [v] * branches, tiles)
        ctx.tiles = tiles
        ctx.save_for_backward(out, lse, v, *queries_and_keys)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out, lse, v, *queries_and_keys = ctx.saved_tensors
        branches = len(queries_and_keys) // 2
        queries, keys = queries_and_keys[:branches], queries_and_keys[branches:]
        dq = [torch.zeros_like(q) for q in queries]
        dk = [torch.zeros_like(k) for k in keys]
        dv = torch.zeros_like(v)
        kernel = kernel_for(queries[0], v)
        # A query that sees nothing has no logits: any finite number makes its gradients 0.
        lse = lse.masked_fill(torch.isneginf(lse), 0.0)
        for branch, rows, columns, is_causal, mask in ctx.tiles:
            tile_dq, tile_dk, tile_dv = kernel.backward(
                grad[:, :, rows],
                queries[branch][:, :, rows],
                keys[branch][:, :, columns],
                v[:, :, columns],
                out[:, :, rows],
                lse[:, :, rows],
                mask,
                is_causal,
            )
            dq[branch][:, :, rows] += tile_dq
            dk[branch][:, :, columns] += tile_dk
            dv[:, :, columns] += tile_dv
        return (None, dv, *dq, *dk)


def _merge_rows(
    out: torch.Tensor, lse: torch.Tensor, tile_out: torch.Tensor, tile_lse: torch.Tensor
) -> None:
    """Merge a tile into the running output and log-sum-exp of its queries, in place."""
    tile_lse = tile_lse.to(lse.dtype)
    # The tile's share of both sums of exponentials; where neither has seen a key it is 0 of 0.
    share = (tile_lse - lse).sigmoid_().nan_to_num_(0.0)
    out.lerp_(tile_out.to(out.dtype), share[..., None])
    torch.logaddexp(lse, tile_lse, out=lse)
