"""Which experts a token goes to, and with what weight (DeepSeek-V2, 2.2; V3, 2.1.2).

Router logits z_i = e_i . u and everything after them are float32, whatever the model's dtype.

    softmax (V2):  s = softmax(z)                 g_i = rho s_i
    sigmoid (V3):  s = sigmoid(z), chosen by s + b    g_i = rho s_i / sum of the chosen s

(`normalised` says which of the two g.) Group-limited choice: experts lie in D groups; a group
counts with its best s (V2) or the sum of its best two s + b (V3); the best M groups stay, and the
best K of their experts are chosen. Of equals the lowest index comes first, so the choice is
deterministic.

Shapes: X tokens, N routed experts, K experts of a token, G = D groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.expert_config import ExpertsConfig


class Routing(NamedTuple):
    """Where tokens go."""

    experts: torch.Tensor
    """[X, K]: the chosen experts, best first."""
    gates: torch.Tensor
    """[X, K]: their weights g, float32."""
    affinities: torch.Tensor
    """[X, N]: s, float32, of all experts, before any masking."""
    logits: torch.Tensor
    """[X, N]: z, float32; no gradient."""


def route(
    x_Xd: torch.Tensor,
    router_Nd: torch.Tensor,
    bias_N: torch.Tensor | None,
    config: ExpertsConfig,
) -> Routing:
    """Choose K experts for every token; the gradient flows through the gates and the affinities."""
    logits_XN = F.linear(x_Xd.float(), router_Nd.float())
    affinities_XN = logits_XN.softmax(-1) if config.gate == "softmax" else logits_XN.sigmoid()
    ranked_XN = affinities_XN.detach()
    if bias_N is not None:
        ranked_XN = ranked_XN + bias_N
    experts_XK = best(limit_to_groups(ranked_XN, config), config.per_token)
    gates_XK = affinities_XN.gather(1, experts_XK)
    if config.normalised:
        gates_XK = gates_XK / (gates_XK.sum(1, keepdim=True) + 1e-20)
    if config.scale != 1.0:
        gates_XK = gates_XK * config.scale
    return Routing(experts_XK, gates_XK, affinities_XN, logits_XN.detach())


def limit_to_groups(ranked_XN: torch.Tensor, config: ExpertsConfig) -> torch.Tensor:
    """The scores, -inf outside the best M groups of a token."""
    if config.groups_per_token == config.groups:
        return ranked_XN
    grouped_XGn = torch.unflatten(ranked_XN, 1, (config.groups, -1))
    if config.gate == "softmax":
        scores_XG = grouped_XGn.amax(-1)
    else:
        scores_XG = grouped_XGn.topk(2, dim=-1).values.sum(-1)
    is_open_XG = torch.zeros_like(scores_XG, dtype=torch.bool)
    is_open_XG.scatter_(1, best(scores_XG, config.groups_per_token), True)
    return grouped_XGn.masked_fill(~is_open_XG[..., None], float("-inf")).flatten(1)


def best(scores_XN: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the largest scores of a row, the lowest index first among equals: [X, count]."""
    return scores_XN.argsort(dim=1, descending=True, stable=True)[:, :count]
