"""Token dropping at the level of devices (DeepSeek-V2, 2.2.4): a budget for every group of experts.

A group takes C = ceil(capacity_factor T K / D) of the T K assignments of a micro batch. Where more
come, those with the lowest affinity are dropped; among equals the later token, then the higher
expert. The tokens of exempt sequences are never dropped and count against the budget first; if they
alone exceed it, all others are. A dropped assignment adds nothing, and the gates of the others
stay. For training only: a result that depends on its neighbours has no place in an evaluation.

Shapes: X tokens, K experts of a token, Y = X K assignments, G groups, B sequences.
"""

from __future__ import annotations

import math

import torch

from models.expert_config import ExpertsConfig

_BUCKETS = 10_000


def capacity(config: ExpertsConfig, tokens: int) -> int:
    """C: assignments that a group takes of those of `tokens` tokens."""
    assert config.capacity_factor is not None
    return math.ceil(config.capacity_factor * tokens * config.per_token / config.groups)


def kept(
    experts_XK: torch.Tensor,
    affinities_XK: torch.Tensor,
    is_exempt_X: torch.Tensor,
    config: ExpertsConfig,
) -> torch.Tensor:
    """Which assignments stay: [X, K] booleans.

    Args:
        experts_XK: The experts of every token, in any order.
        affinities_XK: Their affinities s.
        is_exempt_X: Whether a token is never dropped.
        config: Capacity and groups.
    """
    tokens, per_token = experts_XK.shape
    groups_Y = torch.div(experts_XK, config.group_size, rounding_mode="floor").flatten()
    exempt_Y = is_exempt_X[:, None].expand(-1, per_token).flatten()
    # Least important key first; every sort is stable and keeps the order of the ones before.
    order_Y = experts_XK + torch.arange(tokens, device=experts_XK.device)[:, None] * config.routed
    order_Y = order_Y.flatten().argsort()
    for key_Y in (-affinities_XK.flatten(), (~exempt_Y).int(), groups_Y):
        order_Y = order_Y[key_Y[order_Y].argsort(stable=True)]
    counts_G = torch.bincount(groups_Y, minlength=config.groups)
    exempt_G = torch.bincount(groups_Y, weights=exempt_Y.double(), minlength=config.groups).long()
    starts_G = counts_G.cumsum(0) - counts_G
    ranks_Y = torch.empty_like(order_Y)
    ranks_Y[order_Y] = torch.arange(len(order_Y), device=order_Y.device)
    limits_G = exempt_G.clamp(min=capacity(config, tokens))
    return (ranks_Y - starts_G[groups_Y] < limits_G[groups_Y]).view(tokens, per_token)


def is_exempt(sequence_ids_B: torch.Tensor, share: float) -> torch.Tensor:
    """Whether a sequence is never dropped: fixed by a hash of its id, true for about `share`."""
    # Finaliser of SplitMix64 (Steele et al. 2014); int64 wraps around.
    mixed_B = sequence_ids_B.long() + 0x1E3779B97F4A7C15
    mixed_B = (mixed_B ^ _shift(mixed_B, 30)) * -0x40A7B892E31B1A47
    mixed_B = (mixed_B ^ _shift(mixed_B, 27)) * -0x6B2FB644ECCEEE15
    mixed_B = mixed_B ^ _shift(mixed_B, 31)
    return mixed_B.remainder(_BUCKETS) < share * _BUCKETS


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right without copying the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
