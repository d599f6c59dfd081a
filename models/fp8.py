"""Weights stored as 8-bit floats with a scale for every block, as DeepSeek-V3 was released.

`NAME.weight` in float8 comes with `NAME.weight_scale_inv`, one float32 for each block of 128 x 128
numbers; the weight is their product. A float8 weight without its scales is not the weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

BLOCK = 128
_SUFFIX = "_scale_inv"
_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def dequantised(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state with float8 weights as float32 and without scales; all others as they are.

    Raises ValueError for a float8 weight whose scales are absent or of another shape.
    """
    result = {}
    for name, tensor in state.items():
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) in state:
            continue
        if tensor.dtype in _DTYPES:
            tensor = _multiplied(name, tensor, state.get(f"{name}{_SUFFIX}"))
        result[name] = tensor
    return result


def _multiplied(name: str, tensor: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    if scales is None:
        raise ValueError(f"{name} is stored as {tensor.dtype} but {name}{_SUFFIX} is missing.")
    expected = tuple(-(-size // BLOCK) for size in tensor.shape)
    if tuple(scales.shape) != expected:
        raise ValueError(f"{name}{_SUFFIX} has shape {tuple(scales.shape)} instead of {expected}.")
    rows, columns = tensor.shape
    wide = scales.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return tensor.float() * wide[:rows, :columns]
