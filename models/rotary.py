"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout.

Channel pair m of a rotated head is (x_m, x_{m + R/2}) and turns by the angle p * b^(-2m/R) at
position p. The half-split layout is that of the GPT-NeoX and Llama checkpoints. This module turns
positions into tables of cosines and sines and applies them; where the positions come from is the
business of `models.attention_mask`.

Shapes: B batch, T tokens, H heads, D head width, R rotated channels of a head, r = R/2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class RotaryTables(NamedTuple):
    """Cosines and sines of every angle, [B, T, 1, r]: an axis of one for the heads."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_tables(
    positions_BT: torch.Tensor, *, rotary_width: int, base: float, dtype: torch.dtype
) -> RotaryTables:
    """The tables for `positions_BT`; angles in float32 whatever `dtype`, B may be 1."""
    channels_r = torch.arange(0, rotary_width, 2, dtype=torch.float32, device=positions_BT.device)
    frequencies_r = 1.0 / base ** (channels_r / rotary_width)
    angles_BT1r = positions_BT[..., None, None].float() * frequencies_r
    return RotaryTables(angles_BT1r.cos().to(dtype), angles_BT1r.sin().to(dtype))


def rotate(x_BTHD: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Turn the first R channels of every head; the other channels pass through."""
    cos, sin = tables
    half = cos.shape[-1]
    sizes = [half, half, x_BTHD.shape[-1] - 2 * half]
    first, second, rest = torch.split(x_BTHD, sizes, dim=-1)
    return torch.cat(
        (
            torch.addcmul(first * cos, second, sin, value=-1.0),
            torch.addcmul(second * cos, first, sin),
            rest,
        ),
        dim=-1,
    )
