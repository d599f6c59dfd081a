"""Weights of a model in the precision that it computes in."""

from __future__ import annotations

import torch
from torch import nn


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the weights, in place, into numbers of a type; buffers stay as the model made them.

    A selection bias decides by small differences and is never rounded (DeepSeek-V3, section 2.1.2).
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
