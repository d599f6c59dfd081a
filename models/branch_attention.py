"""Attention under a position scheme: one call for a model, whatever the scheme and the backend.

`branch_inputs` turns a plan and the positions of a batch into what every layer shares: cosines and
sines for each branch, the log-n factor, and the tiles or masks that say which pairs belong to which
branch. `branch_attention` is then softmax(logits) v with the logit of every pair rotated as its
branch says.

Backends: `dense` computes every branch's T x T logits and selects, which is slow, takes memory and
is obviously right, so the tests measure all others against it; `merge` computes each pair once
(`models.merge_attention`). Schemes with one branch need neither: any attention will do for them,
with the tables of `whole`.

Shapes: B batch, T tokens, H query heads, K key heads, D head width, V width of a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from models import positions
from models.merge_attention import Tile, masked_tiles, merge_attention, plain_tiles
from models.positions import Branch, PositionPlan
from models.rotary import RotaryLayout, RotaryTables, rotate

AttentionBackend = Literal["dense", "merge"]


class BranchTables(NamedTuple):
    """Where one branch puts queries and keys."""

    query: RotaryTables
    key: RotaryTables | None
    """None where keys stay as they are: the far keys of ReRoPE."""


@dataclass(frozen=True)
class BranchInputs:
    """What the attention of every layer shares in one forward pass under a plan."""

    branches: tuple[BranchTables, ...]
    layout: RotaryLayout
    query_factor: torch.Tensor | None
    """Log-n factor of each query, [B, T, 1, 1]; None stands for 1."""
    tiles: list[Tile] | None
    """For the merge backend."""
    seen: tuple[torch.Tensor, ...] | None
    """For the dense backend: for each branch its pairs, [B or 1, 1, T, T]."""
    padding: torch.Tensor | None
    """[B, T], true where there is no token; the output is zero there."""


def branch_inputs(
    position_plan: PositionPlan,
    positions_BT: torch.Tensor,
    *,
    dtype: torch.dtype,
    segments_BT: torch.Tensor | None = None,
    counts_BT: torch.Tensor | None = None,
    start_is_zero: bool = False,
    backend: AttentionBackend = "merge",
) -> BranchInputs:
    """Prepare a batch for `branch_attention`.

    Args:
        position_plan: Any plan.
        positions_BT: Positions, rising by one inside a document; B may be 1.
        dtype: Of queries and keys.
        segments_BT: The document of each token, -1 for padding; None where a row is one document
            without padding.
        counts_BT: Keys that each query sees, itself included (t); `positions_BT` + 1 when None.
        start_is_zero: Whether every row is one document that starts at position 0, which the merge
            backend can then compute without masks.
        backend: `dense` or `merge`.
    """
    tables = [
        branch_tables(position_plan, branch, positions_BT, dtype)
        for branch in positions.branches(position_plan)
    ]
    factor = None
    if position_plan.scheme.log_n != "none":
        counts_BT = positions_BT + 1 if counts_BT is None else counts_BT
        factor = positions.log_n_factor(position_plan, counts_BT).to(dtype)[..., None, None]
    tiles, seen = None, None
    like = torch.empty(0, dtype=dtype, device=positions_BT.device)
    if backend == "dense":
        seen = tuple(
            _pairs(position_plan, branch, positions_BT, segments_BT)
            for branch in positions.branches(position_plan)
        )
    elif len(tables) > 1:
        if start_is_zero and segments_BT is None:
            tiles = plain_tiles(position_plan, positions_BT.shape[1], like)
        else:
            tiles = masked_tiles(position_plan, positions_BT, segments_BT, like)
    return BranchInputs(
        branches=tuple(tables),
        layout=position_plan.layout,
        query_factor=factor,
        tiles=tiles,
        seen=seen,
        padding=None if segments_BT is None else segments_BT < 0,
    )


def branch_tables(
    position_plan: PositionPlan, branch: Branch, positions_BT: torch.Tensor, dtype: torch.dtype
) -> BranchTables:
    """The tables of one branch for tokens at some positions, of any shape."""
    query_at = positions.query_positions(position_plan, branch, positions_BT)
    query = positions.tables(position_plan, query_at, dtype=dtype)
    if branch in ("whole", "near", "same_chunk"):
        # Queries and keys stand at the same positions.
        return BranchTables(query, query)
    if branch == "far" and positions.leaves_far_keys(position_plan):
        return BranchTables(query, None)
    key_at = positions.key_positions(position_plan, branch, positions_BT)
    return BranchTables(query, positions.tables(position_plan, key_at, dtype=dtype))


def _pairs(
    position_plan: PositionPlan,
    branch: Branch,
    positions_BT: torch.Tensor,
    segments_BT: torch.Tensor | None,
) -> torch.Tensor:
    """The visible pairs of a branch, [B or 1, 1, T, T]."""
    step = torch.arange(positions_BT.shape[1], device=positions_BT.device)
    seen = positions.visible(
        position_plan, branch, positions_BT[:, :, None], positions_BT[:, None, :]
    )
    seen = seen & (step[:, None] >= step)
    if segments_BT is not None:
        seen = seen & (segments_BT[:, :, None] == segments_BT[:, None, :])
    return seen[:, None]


def branch_attention(
    q_BTHD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKV: torch.Tensor, inputs: BranchInputs
) -> torch.Tensor:
    """Causal attention of raw (not rotated) queries and keys under the plan: [B, H, T, V]."""
    if inputs.query_factor is not None:
        q_BTHD = q_BTHD * inputs.query_factor
    queries = [_turned(q_BTHD, branch.query, inputs.layout) for branch in inputs.branches]
    keys = [_turned(k_BTKD, branch.key, inputs.layout) for branch in inputs.branches]
    v_BKTV = v_BTKV.transpose(1, 2)
    if inputs.seen is not None:
        out_BHTV = _dense_attention(queries, keys, v_BKTV, inputs.seen)
    else:
        assert inputs.tiles is not None, "schemes with one branch take any attention"
        out_BHTV = merge_attention(queries, keys, v_BKTV, inputs.tiles)
    if inputs.padding is not None:
        out_BHTV = out_BHTV.masked_fill(inputs.padding[:, None, :, None], 0.0)
    return out_BHTV


def _turned(
    x_BTHD: torch.Tensor, tables: RotaryTables | None, layout: RotaryLayout
) -> torch.Tensor:
    turned = x_BTHD if tables is None else rotate(x_BTHD, tables, layout)
    return turned.transpose(1, 2)


def _dense_attention(
    queries: list[torch.Tensor],
    keys: list[torch.Tensor],
    v_BKTV: torch.Tensor,
    seen: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    group = queries[0].shape[1] // v_BKTV.shape[1]
    logits = torch.full((), -math.inf, dtype=torch.promote_types(v_BKTV.dtype, torch.float32))
    logits = logits.to(v_BKTV.device)
    for q_BHTD, k_BKTD, pairs in zip(queries, keys, seen, strict=True):
        k_BHTD = k_BKTD.repeat_interleave(group, dim=1)
        scores = (q_BHTD @ k_BHTD.mT) / math.sqrt(q_BHTD.shape[-1])
        logits = torch.where(pairs, scores.to(logits.dtype), logits)
    weights = logits.softmax(dim=-1).to(v_BKTV.dtype)
    return weights @ v_BKTV.repeat_interleave(group, dim=1)
