"""Keeping experts equally busy: losses (DeepSeek-V2, 2.2.3), a bias (V3, 2.1.2), and the measure.

With I_i,t = 1 where token t of a sequence of T tokens goes to expert i, before any dropping,

    f_i = N / (K T) sum_t I_i,t        P_i = 1/T sum_t s_i,t
    L_exp  = sum_i f_i P_i
    L_dev  = sum_g f'_g P'_g           f'_g mean of f_i, P'_g sum of P_i, in group g
    L_comm = sum_g f''_g P'_g          f''_g = D / (M T) sum_t 1[token t is sent to group g]

for each sequence; every one is 1 under perfect balance. The gradient flows through P only. With the
sigmoid gate P is made of s_i / sum_j s_j.

The loss-free bias of an expert rises where it had less than the mean load of a global batch and
falls where it had more. A load is a count over the whole global batch: sum over ranks, then take
the sign.

Shapes: B sequences, T tokens, K experts of a token, N experts, G = D groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from models.expert_config import ExpertsConfig
from models.routing import Routing


class RoutingStatistics(NamedTuple):
    """What the routing of one layer says about its balance."""

    load: torch.Tensor
    """[B, N]: tokens of a sequence that go to each expert, before dropping; no gradient."""
    affinity: torch.Tensor
    """[B, N]: P_i of each sequence, with gradient."""
    sent: torch.Tensor
    """[B, G]: tokens of each sequence that go to each group; no gradient."""
    most_groups: torch.Tensor
    """[B]: groups that any one token of a sequence goes to at most."""
    tokens: int
    """T."""
    dropped: torch.Tensor
    """Scalar: assignments that were dropped."""
    logits: torch.Tensor
    """Scalar: the sum of the router's logits, which is finite where all of them are; no gradient.
    Affinities would not say: those of the sigmoid gate are finite for infinite logits, too."""


class BalanceLosses(NamedTuple):
    """Sums over sequences, each 1 a sequence under perfect balance; factors not applied."""

    expert: torch.Tensor
    device: torch.Tensor
    communication: torch.Tensor


def statistics(
    routing: Routing,
    is_kept_XK: torch.Tensor | None,
    *,
    sequences: int,
    config: ExpertsConfig,
) -> RoutingStatistics:
    """Counts and mean affinities of each of `sequences` rows of equal length."""
    experts_BY = torch.unflatten(routing.experts, 0, (sequences, -1)).flatten(1)
    affinities_BTN = torch.unflatten(routing.affinities, 0, (sequences, -1))
    if config.gate == "sigmoid":
        affinities_BTN = affinities_BTN / affinities_BTN.sum(-1, keepdim=True)
    load_BN = affinities_BTN.new_zeros(sequences, config.routed)
    load_BN.scatter_add_(1, experts_BY, load_BN.new_ones(experts_BY.shape))
    groups_XK = torch.div(routing.experts, config.group_size, rounding_mode="floor")
    is_sent_XG = load_BN.new_zeros(len(groups_XK), config.groups).scatter_(1, groups_XK, 1.0)
    dropped = load_BN.new_zeros(()) if is_kept_XK is None else (~is_kept_XK).sum().float()
    return RoutingStatistics(
        load=load_BN,
        affinity=affinities_BTN.mean(1),
        sent=torch.unflatten(is_sent_XG, 0, (sequences, -1)).sum(1),
        most_groups=torch.unflatten(is_sent_XG.sum(1), 0, (sequences, -1)).amax(1),
        tokens=affinities_BTN.shape[1],
        dropped=dropped,
        logits=routing.logits.sum(),
    )


def balance_losses(seen: RoutingStatistics, config: ExpertsConfig) -> BalanceLosses:
    """The three losses of one layer, summed over its sequences."""
    f_BN = seen.load * (config.routed / (config.per_token * seen.tokens))
    group_P_BG = torch.unflatten(seen.affinity, 1, (config.groups, -1)).sum(-1)
    group_f_BG = torch.unflatten(f_BN, 1, (config.groups, -1)).mean(-1)
    sent_f_BG = seen.sent * (config.groups / (config.groups_per_token * seen.tokens))
    return BalanceLosses(
        expert=(f_BN * seen.affinity).sum(),
        device=(group_f_BG * group_P_BG).sum(),
        communication=(sent_f_BG * group_P_BG).sum(),
    )


def updated_bias(bias_N: torch.Tensor, load_N: torch.Tensor, gamma: float) -> torch.Tensor:
    """b_i + gamma sign(mean load - load_i), float32; `load_N` counts the whole global batch."""
    load_N = load_N.double()
    return bias_N + gamma * (load_N.mean() - load_N).sign().float()


def max_violation(load_N: torch.Tensor) -> float:
    """MaxVio = max_i load_i / mean load - 1; 0 under perfect balance."""
    load_N = load_N.double()
    mean = float(load_N.mean())
    return float(load_N.max()) / mean - 1.0 if mean else 0.0
