"""Load DeepSpeed's files without unpickling anything but tensors and plain containers.

DeepSpeed calls `torch.load(..., weights_only=False)` in many places. The environment variable
TORCH_FORCE_WEIGHTS_ONLY_LOAD, which every worker is started with, overrules it; the few harmless
classes that DeepSpeed's own files hold are allowed here by name.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch


def deepspeed_types() -> list[Any]:
    """The classes that a checkpoint of DeepSpeed 0.19.8 holds beside tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def allow_deepspeed_types() -> torch.serialization.safe_globals:
    """A context in which safe loading accepts DeepSpeed's own classes, and nothing else new."""
    return torch.serialization.safe_globals(deepspeed_types())


def pickle_enums_by_value() -> None:
    """Write the members of enums, in every process that writes such files, as new Pythons do.

    Python 3.11.0 to 3.11.3 pickle a member as `getattr(kind, name)`, and safe loading refuses a
    file that holds `getattr`.
    """
    for kind in deepspeed_types():
        if issubclass(kind, Enum):
            kind.__reduce_ex__ = _by_value


def _by_value(member: Enum, protocol: int) -> tuple[type[Enum], tuple[object]]:
    return type(member), (member.value,)
