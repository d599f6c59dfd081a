"""Which token may attend to which, and at what position each token stands.

Three sources: a padding mask (left, right or both), packed documents that must not see each
other, and nothing at all. Wherever plain causal attention gives the same numbers the mask is None,
because the causal kernels skip half of the work. Right padding is such a case: a causal model never
looks to the right. What is computed at padding positions is finite and means nothing.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import torch


def derived_positions(
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None,
    document_ids_BT: torch.Tensor | None,
) -> torch.Tensor:
    """Places of the real tokens, from 0, anew in every document: [B, T], or [1, T] if shared."""
    steps_1T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)[None]
    if document_ids_BT is not None:
        segments_BT = segments(attention_mask_BT, document_ids_BT)
        starts_BT = segments_BT != segments_BT.roll(1, dims=1)
        starts_BT[:, 0] = True
        return steps_1T - torch.where(starts_BT, steps_1T, 0).cummax(dim=1).values
    if attention_mask_BT is not None:
        return (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)
    return steps_1T


def additive_mask(
    attention_mask_BT: torch.Tensor | None,
    document_ids_BT: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """0 where a query (axis 2) may attend to a key (axis 3), -inf elsewhere: [B, 1, T, T].

    None stands for plain causal attention. Every token may attend to itself, so that padding
    positions, which may attend to nothing else, give finite numbers.
    """
    if document_ids_BT is not None:
        segments_BT = segments(attention_mask_BT, document_ids_BT)
        allowed_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    elif attention_mask_BT is not None and not is_right_padded(attention_mask_BT):
        tokens = attention_mask_BT.shape[1]
        allowed_BTT = attention_mask_BT.bool()[:, None, :].expand(-1, tokens, -1)
        allowed_BTT = allowed_BTT | torch.eye(
            tokens, dtype=torch.bool, device=attention_mask_BT.device
        )
    else:
        return None
    blocked_BTT = ~allowed_BTT.tril()
    mask_BTT = torch.zeros(blocked_BTT.shape, dtype=dtype, device=blocked_BTT.device)
    return mask_BTT.masked_fill_(blocked_BTT, float("-inf"))[:, None]


def is_right_padded(attention_mask_BT: torch.Tensor) -> bool:
    """Whether no real token follows a padding token in any row; waits for the device.

    Masks on the meta device have no values and count as padded on the right.
    """
    if attention_mask_BT.is_meta:
        return True
    mask_BT = attention_mask_BT.bool()
    return not bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any())


def row_segments(
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor | None,
    document_ids_BT: torch.Tensor | None,
) -> torch.Tensor | None:
    """The segments, or None where every row is one document that nothing stands before: [B, T]."""
    if document_ids_BT is not None:
        return segments(attention_mask_BT, document_ids_BT)
    if attention_mask_BT is None or is_right_padded(attention_mask_BT):
        return None
    return segments(attention_mask_BT, torch.zeros_like(input_ids_BT))


def segments(attention_mask_BT: torch.Tensor | None, document_ids_BT: torch.Tensor) -> torch.Tensor:
    """The document of each token, and one more segment, -1, for padding."""
    if attention_mask_BT is None:
        return document_ids_BT
    return document_ids_BT.masked_fill(~attention_mask_BT.bool(), -1)
