"""Weights of a model in the precision that it computes in."""

from __future__ import annotations

import torch
from torch import nn

from models.mixture import MixtureOfExperts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Number formats by the names they have in configs."""


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the weights, in place, into numbers of a type, but for what chooses experts.

    Small differences decide where a token goes, so routers keep their float32 weights, and buffers,
    such as the selection bias, stay as the model made them (DeepSeek-V3, section 2.1.2).
    """
    routers = {
        id(module.router.weight)
        for module in model.modules()
        if isinstance(module, MixtureOfExperts)
    }
    for parameter in model.parameters():
        if id(parameter) not in routers:
            parameter.data = parameter.data.to(dtype)
