"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in both layouts of the pairs.

Channel pair m of a rotated head turns by the angle p * theta_m at position p, where theta_m =
b^(-2m/R) unless a table of frequencies says otherwise (`models.rotary_frequencies`). The pair is
(x_m, x_{m + R/2}) in the half-split layout of the GPT-NeoX and Llama checkpoints and (x_{2m},
x_{2m+1}) in the interleaved layout of the DeepSeek checkpoints. This module turns positions into
tables of cosines and sines and applies them; where the positions come from is the business of
`models.attention_mask` and `models.positions`. `Decoder` always uses halves: a checkpoint that
pairs neighbours is re-ordered once when it is read (`models.hf_layout`), and the same order in
queries and keys leaves every score as it was.

Shapes: B batch, T tokens, H heads, D head width, R rotated channels of a head, r = R/2.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from models.rotary_frequencies import rope_frequencies, stretched_frequencies
from models.yarn import YarnConfig

RotaryLayout = Literal["half", "interleaved"]
"""Which channels form a pair: (x_m, x_{m + R/2}) or (x_{2m}, x_{2m+1})."""


class RotaryTables(NamedTuple):
    """Cosines and sines of every angle, [B, T, 1, r]: an axis of one for the heads."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_tables(
    positions_BT: torch.Tensor,
    *,
    rotary_width: int,
    base: float,
    dtype: torch.dtype,
    yarn: YarnConfig | None = None,
) -> RotaryTables:
    """The tables for `positions_BT`; angles in float32 whatever `dtype`, B may be 1."""
    width, device = rotary_width, positions_BT.device
    if yarn is None:
        return angle_tables(positions_BT, rope_frequencies(width, base, device=device), dtype=dtype)
    frequencies_r = stretched_frequencies(width, base, yarn)
    return angle_tables(positions_BT, frequencies_r.to(device), dtype=dtype, factor=yarn.magnitude)


def angle_tables(
    positions_BT: torch.Tensor,
    frequencies_r: torch.Tensor,
    *,
    dtype: torch.dtype,
    factor: float = 1.0,
) -> RotaryTables:
    """The tables for any positions, whole or broken, and any frequencies; B may be 1.

    Angles are formed in the dtype of the frequencies: float32, or float64 for positions beyond
    2^20, where the rounding of a float32 angle would reach a tenth of a radian.

    Args:
        positions_BT: Positions.
        frequencies_r: Turns per position of each channel pair.
        dtype: Of the tables.
        factor: Multiplies cosines and sines, so that what is rotated is scaled too (YaRN).

    Raises:
        ValueError: Positions or frequencies in half precision: angles would be noise.
    """
    for name, tensor in (("positions", positions_BT), ("frequencies", frequencies_r)):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"rotary {name} must be whole numbers, float32 or float64, got {tensor.dtype}: "
                "half precision cannot hold an angle."
            )
    angles_BT1r = positions_BT[..., None, None].to(frequencies_r.dtype) * frequencies_r
    cos, sin = angles_BT1r.cos(), angles_BT1r.sin()
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return RotaryTables(cos.to(dtype), sin.to(dtype))


def rotate(
    x_BTHD: torch.Tensor, tables: RotaryTables, layout: RotaryLayout = "half"
) -> torch.Tensor:
    """Turn the first R channels of every head; the other channels pass through."""
    cos, sin = tables
    half = cos.shape[-1]
    if layout == "interleaved":
        turned, rest = torch.split(x_BTHD, [2 * half, x_BTHD.shape[-1] - 2 * half], dim=-1)
        first, second = torch.unflatten(turned, -1, (half, 2)).unbind(dim=-1)
        pairs = torch.stack(_turn(first, second, cos, sin), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)
    sizes = [half, half, x_BTHD.shape[-1] - 2 * half]
    first, second, rest = torch.split(x_BTHD, sizes, dim=-1)
    return torch.cat((*_turn(first, second, cos, sin), rest), dim=-1)


def _turn(
    first: torch.Tensor, second: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.addcmul(first * cos, second, sin, value=-1.0),
        torch.addcmul(second * cos, first, sin),
    )
