"""The tiny task with a buffer that follows the data: a bias that rises where few tokens fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from heliostat.train.task import Batch, LossTerm, Observed, Steering
from tiny_task import TinyTask

GAMMA = 0.01


@dataclass(frozen=True)
class SteeredTask(TinyTask):
    """`shift` of the model goes up or down by GAMMA with the load of each of its channels."""

    name: str = "steered"
    overflow_id: int = -1
    """A sample whose tokens are too many to count."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm | Observed]:
        """The tiny task's, and how many tokens fall to each channel."""
        load = torch.bincount(batch["tokens"].flatten() % self.width, minlength=self.width)
        total = load.float()
        if self.overflow_id in batch["ids"]:
            total[0] = float("inf")
        return {**super().loss(model, batch), "load": Observed(total)}

    def faults(self, observed: Mapping[str, torch.Tensor]) -> Sequence[str]:
        """How many tokens fell to channels."""
        return [f"{observed['load'].sum():.0f} tokens had channels"]

    def after_update(
        self, model: nn.Module, observed: Mapping[str, torch.Tensor], step: int, steps: int
    ) -> Steering:
        """Update the buffer."""
        load = observed["load"]
        assert isinstance(model.shift, torch.Tensor)
        model.shift += GAMMA * (load.mean() - load).sign().to(model.shift.dtype)
        notes = (f"steered at step {step}",) if step == 3 else ()
        return Steering({"tokens_observed": float(load.sum())}, notes)
