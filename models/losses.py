"""Cross entropies as a sum and the number of targets that it runs over.

A mean over micro batches or ranks of unequal size is not the mean over the global batch, so nothing
here divides: add the sums, add the counts, divide once. Softmaxes are computed in float32.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -100
"""The label of a position that is no target."""


class SummedLoss(NamedTuple):
    """A loss as numerator and denominator."""

    total: torch.Tensor
    """Scalar, differentiable: the sum of the cross entropies in nats."""
    targets: torch.Tensor
    """Scalar int64: the number of targets that `total` runs over."""

    @property
    def mean(self) -> torch.Tensor:
        """The mean cross entropy; nan without targets."""
        return self.total / self.targets


def next_token_targets(labels_BT: torch.Tensor) -> torch.Tensor:
    """What each position must predict: the label of the next one, nothing at the last.

    `labels_BT` are aligned with the input ids, as everywhere in Hugging Face code: label t is the
    token at t, or -100 where it must not be learnt.
    """
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)


def next_token_loss(
    model: nn.Module,
    input_ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> SummedLoss:
    """The next-token loss of a `DecoderLM` or of a wrapper (DeepSpeed, DDP) around one."""
    targets_BT = next_token_targets(labels_BT)
    total = model(
        input_ids_BT,
        attention_mask=attention_mask,
        position_ids=position_ids,
        document_ids=document_ids,
        targets_BT=targets_BT,
    )
    return SummedLoss(total, (targets_BT != IGNORED).sum())


def classification_loss(
    logits_BC: torch.Tensor, labels_B: torch.Tensor, *, label_smoothing: float = 0.0
) -> SummedLoss:
    """Cross entropy of the classes; label -100 marks a row that is no target."""
    total = F.cross_entropy(
        logits_BC.float(),
        labels_B,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return SummedLoss(total, (labels_B != IGNORED).sum())
