"""Frequencies of the rotary embedding: plain, and changed so that longer inputs stay in range.

A channel pair m of R/2 turns by theta_m = b^(-2m/R) for each position. Context extension by
frequency replaces theta_m by a theta'_m that turns more slowly, for an expansion of k = n/L:

* `ntk_old_frequencies`: base b k;
* `ntk_frequencies` (NTK-aware): base b k^(R/(R-2)), keeps theta_0 and divides the last by k;
* `ntk_fixed_frequencies`: theta_m k^(-2(m+1)/R);
* `ntk_mixed_frequencies`: theta_m exp(-a (m+1)^beta), a = ln k / (R/2)^beta, of which beta = 1 is
  the fixed form and beta = 0 is position interpolation;
* `yarn_frequencies` (Peng et al. 2023, arXiv 2309.00071, section 3.2): pairs that turn often inside
  L keep theta_m, those that never turn once are interpolated, with a ramp between.

NTK forms: kexue.fm archives 9675 and 9706. Every function gives exactly the plain frequencies for
k <= 1. The plain ones are computed in the dtype asked for, as the checkpoints' own code does; the
changed ones in float64 and then rounded.

Shapes: R rotated channels of a head, r = R/2.
"""

from __future__ import annotations

import math

import torch

from models.yarn import YarnConfig
from models.yarn import yarn_factor as yarn_factor


def rope_frequencies(
    rotary_width: int,
    base: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> torch.Tensor:
    """theta_m = b^(-2m/R) for m = 0 .. R/2 - 1: [r]."""
    channels_r = torch.arange(0, rotary_width, 2, dtype=dtype, device=device)
    return 1.0 / base ** (channels_r / rotary_width)


def ntk_old_frequencies(
    rotary_width: int, base: float, k: float, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The frequencies of base b k: [r]."""
    return rope_frequencies(rotary_width, base * max(k, 1.0), dtype=dtype)


def ntk_frequencies(
    rotary_width: int, base: float, k: float, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The frequencies of base b k^(R/(R-2)): [r].

    Raises:
        ValueError: R = 2, where one pair cannot both keep and divide its frequency.
    """
    if rotary_width <= 2:
        raise ValueError(f"ntk needs at least 4 rotated channels, got {rotary_width}.")
    stretch = max(k, 1.0) ** (rotary_width / (rotary_width - 2))
    return rope_frequencies(rotary_width, base * stretch, dtype=dtype)


def ntk_fixed_frequencies(
    rotary_width: int, base: float, k: float, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """theta_m k^(-2(m+1)/R): [r]."""
    return ntk_mixed_frequencies(rotary_width, base, k, beta=1.0, dtype=dtype)


def ntk_mixed_frequencies(
    rotary_width: int, base: float, k: float, *, beta: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """theta_m exp(-a (m+1)^beta) with a = ln k / (R/2)^beta: [r]."""
    theta_r = rope_frequencies(rotary_width, base, dtype=dtype)
    if k <= 1.0:
        return theta_r
    share_r = torch.arange(1, rotary_width // 2 + 1, dtype=torch.float64) / (rotary_width / 2)
    return (theta_r.double() * torch.exp(-math.log(k) * share_r**beta)).to(dtype)


def yarn_frequencies(
    rotary_width: int,
    base: float,
    k: float,
    *,
    train_length: int,
    fast_turns: float = 32.0,
    slow_turns: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """theta_m ((1 - ramp_m) + ramp_m / k): [r].

    corr(rho) = R ln(L / (2 pi rho)) / (2 ln b) is the pair that turns rho times inside L; the ramp
    rises from 0 at corr(fast) to 1 at corr(slow).

    Args:
        rotary_width: R.
        base: b.
        k: Expansion n/L.
        train_length: L.
        fast_turns: Pairs that turn more often than this inside L are left alone.
        slow_turns: Pairs that turn less often than this are interpolated fully.
        dtype: Of the result.
    """
    theta_r = rope_frequencies(rotary_width, base, dtype=dtype)
    if k <= 1.0:
        return theta_r

    def pair_turning(turns: float) -> float:
        return rotary_width * math.log(train_length / (2 * math.pi * turns)) / (2 * math.log(base))

    low = float(max(math.floor(pair_turning(fast_turns)), 0))
    high = float(min(math.ceil(pair_turning(slow_turns)), rotary_width - 1))
    if low == high:
        high += 0.001
    pairs_r = torch.arange(rotary_width // 2, dtype=torch.float64)
    ramp_r = ((pairs_r - low) / (high - low)).clamp(0.0, 1.0)
    return (theta_r.double() * ((1.0 - ramp_r) + ramp_r / k)).to(dtype)


def stretched_frequencies(
    rotary_width: int, base: float, yarn: YarnConfig, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The frequencies of a model with a YaRN of its own: [r], on the CPU."""
    with torch.device("cpu"):
        return yarn_frequencies(
            rotary_width,
            base,
            yarn.factor,
            train_length=yarn.original_positions,
            fast_turns=yarn.beta_fast,
            slow_turns=yarn.beta_slow,
            dtype=dtype,
        )
