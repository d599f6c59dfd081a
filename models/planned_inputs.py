"""From a position plan and a batch to what the attention of every block shares.

The counterpart, for a scheme of `models.positions`, of what `Decoder` does for plain rotary
positions: where tokens stand, who sees whom, and the tables.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from typing import Protocol

import torch

from models.attention_mask import additive_mask, derived_positions, row_segments
from models.branch_attention import AttentionBackend, branch_inputs
from models.decoder_config import DecoderConfig
from models.key_value_attention import AttentionInputs
from models.position_checks import require_consecutive
from models.positions import PositionPlan, has_branches


class RotaryShape(Protocol):
    """What a plan must know of a model."""

    @property
    def rotary_width(self) -> int: ...

    @property
    def rotary_base(self) -> float: ...


def planned_inputs(
    position_plan: PositionPlan,
    input_ids_BT: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    dtype: torch.dtype,
    backend: AttentionBackend = "merge",
) -> AttentionInputs:
    """The shared inputs under a plan; arguments as of `Decoder.forward`.

    Raises:
        ValueError: `position_ids` do not rise by one inside a document.
    """
    counted_BT = derived_positions(input_ids_BT, attention_mask, document_ids)
    segments_BT = row_segments(input_ids_BT, attention_mask, document_ids)
    if position_ids is not None:
        require_consecutive(position_ids, segments_BT)
    shared = branch_inputs(
        position_plan,
        counted_BT if position_ids is None else position_ids,
        dtype=dtype,
        segments_BT=segments_BT,
        counts_BT=counted_BT + 1,
        start_is_zero=position_ids is None and segments_BT is None,
        backend=backend,
    )
    if has_branches(position_plan):
        return AttentionInputs(shared.branches[0].query, None, None, shared)
    return AttentionInputs(
        rotary=shared.branches[0].query,
        mask=additive_mask(attention_mask, document_ids, dtype),
        query_factor=shared.query_factor,
    )


def require_plan_fits(config: RotaryShape, position_plan: PositionPlan) -> None:
    """Refuse a plan that was made for another model than `config` describes.

    Raises:
        ValueError: The rotary widths or bases differ, or the model's own YaRN.
    """
    made_for = (position_plan.rotary_width, position_plan.rotary_base)
    if made_for != (config.rotary_width, config.rotary_base):
        raise ValueError(
            f"the position plan is for rotary width and base {made_for}, but the model has "
            f"{(config.rotary_width, config.rotary_base)}."
        )
    if position_plan.layout != "half":
        raise ValueError("a Decoder keeps channel pairs in halves; the plan says interleaved.")
    if not isinstance(config, DecoderConfig):
        return
    if config.yarn != position_plan.yarn:
        raise ValueError(f"the model has {config.yarn}, but the plan is for {position_plan.yarn}.")
