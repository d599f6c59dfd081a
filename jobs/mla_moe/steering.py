"""After every step: the selection biases follow the loads, and imbalance is recorded and warned of.

The loads come summed over the whole global batch, so every rank moves its biases alike
(DeepSeek-V3, 2.1.2). The map of loads has a number for every expert of every layer; it is recorded
for about a hundred steps of a training, and not at all for models of thousands of experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from heliostat.train.task import Steering
from jobs.mla_moe.config import BalanceConfig
from models.balance import max_violation, updated_bias
from models.expert_config import ExpertsConfig
from models.mixture import MixtureOfExperts

RECORDED_STEPS = 100
LARGEST_MAP = 512
"""Numbers of a map of loads that is recorded."""
IDLE_STEPS = 500
"""Steps without a single token after which an expert counts as dead."""
JUDGED_STEPS = 500
"""Steps between two looks at imbalance and dropping: those of one step are worth no warning."""


@dataclass(frozen=True)
class Steerer:
    """What a training does about its balance."""

    experts: ExpertsConfig
    balance: BalanceConfig
    steps: int

    def after_update(
        self, model: nn.Module, loads: torch.Tensor, dropped: torch.Tensor, step: int
    ) -> Steering:
        """Move the biases; returns what to record and to say.

        Args:
            model: holds the mixtures.
            loads: assignments of the global batch, by layer and expert, before dropping.
            dropped: how many of them were dropped, by layer.
            step: from 1.
        """
        mixtures = [one for one in model.modules() if isinstance(one, MixtureOfExperts)]
        if self.balance.gamma and step <= self.balance.gamma_share * self.steps:
            for mixture, load in zip(mixtures, loads, strict=True):
                if mixture.selection_bias is not None:
                    bias = updated_bias(mixture.selection_bias, load, self.balance.gamma)
                    mixture.selection_bias.copy_(bias)
        for mixture, load in zip(mixtures, loads, strict=True):
            idle = mixture.idle_steps_N.to(load.device) + 1
            mixture.idle_steps_N = torch.where(load > 0, 0, idle)
        violations = [max_violation(load) for load in loads]
        metrics = {f"max_violation/{layer}": value for layer, value in enumerate(violations)}
        if self.experts.capacity_factor is not None:
            assigned = loads.sum(1)
            for layer, share in enumerate((dropped / assigned).tolist()):
                metrics[f"dropped_share/{layer}"] = share
        every = max(1, self.steps // RECORDED_STEPS)
        if loads.numel() <= LARGEST_MAP and (step % every == 0 or step == 1):
            relative = loads / loads.mean(1, keepdim=True)
            metrics |= {
                f"load/{layer}/{expert}": value
                for layer, row in enumerate(relative.tolist())
                for expert, value in enumerate(row)
            }
        notes = dead_experts(mixtures)
        if step % JUDGED_STEPS == 0 or step == self.steps:
            notes += self._warnings(metrics)
        return Steering(metrics, notes)

    def _warnings(self, metrics: dict[str, float]) -> list[str]:
        notes = []
        layers = sum(name.startswith("max_violation/") for name in metrics)
        for layer in range(layers):
            if metrics[f"max_violation/{layer}"] > self.balance.warn_max_violation:
                notes.append(
                    f"an expert of layer of experts {layer} had "
                    f"{metrics[f'max_violation/{layer}']:.1f} times the mean load above it"
                )
            share = metrics.get(f"dropped_share/{layer}", 0.0)
            if share > self.balance.warn_dropped_share:
                notes.append(
                    f"{share:.0%} of the assignments of layer of experts {layer} were dropped: "
                    "raise model.experts.capacity_factor"
                )
        return notes


def dead_experts(mixtures: list[MixtureOfExperts]) -> list[str]:
    """What to say of experts without a token for IDLE_STEPS now, or once more as long."""
    notes = []
    for layer, mixture in enumerate(mixtures):
        idle = mixture.idle_steps_N
        dead = ((idle > 0) & (idle % IDLE_STEPS == 0)).nonzero()[:, 0].tolist()
        if dead:
            names = ", ".join(map(str, dead))
            notes.append(
                f"expert {names} of layer of experts {layer} has had no token for {IDLE_STEPS} "
                "steps: raise balance.gamma or balance.alpha_expert"
            )
    return notes
