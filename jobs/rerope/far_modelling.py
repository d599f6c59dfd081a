"""The training of the inverse leaky model, judged as it goes by what it is trained for.

The loss of its training says little, since positions are others than in reading: `evaluate` reads
windows of 8 L tokens with plain rope, and scores their last L targets with 8 L and with L tokens of
context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from heliostat.data.stream import Stream
from heliostat.storage import Location
from heliostat.train.task import Batch, Tally
from jobs.corpora.windows import FixedWindowStream
from jobs.rerope.config import Config
from jobs.rerope.tasks import REACH, WindowModelling, model_shape, training_scheme
from models.losses import IGNORED
from models.planned_lm import plan_for
from models.positions import PositionScheme

FAR, NEAR = "nonrep_loss_8L", "nonrep_loss_L"


@dataclass(frozen=True)
class FarModelling(WindowModelling):
    """Next-token prediction over windows of L tokens, evaluated at 8 L."""

    choice: FixedWindowStream
    """Windows of 8 L tokens and one more."""

    def eval_data(self) -> Stream:
        """The windows that settings are chosen on."""
        return self.choice

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Mean cross entropy of the last L targets, nats a token, with two lengths of context."""
        return {
            FAR: self._at_the_end(model, batch, REACH * self.length),
            NEAR: self._at_the_end(model, batch, self.length),
        }

    def _at_the_end(self, model: nn.Module, batch: Batch, context: int) -> Tally:
        targets = batch["targets"][:, -context:].clone()
        targets[:, : context - self.length] = IGNORED
        rope = PositionScheme("rope", log_n=self.scheme.log_n)
        plan = plan_for(self.shape, rope, train_length=self.length, length=context)
        total: torch.Tensor = model(
            batch["input_ids"][:, -context:], targets_BT=targets, position_plan=plan
        )
        return Tally(total, len(targets) * self.length)


def far_modelling(config: Config, *, train: Location, choice: FixedWindowStream) -> FarModelling:
    """The training of the inverse leaky model of a config."""
    return FarModelling(
        name="inverse_leaky",
        shape=model_shape(config, "inverse_leaky"),
        scheme=training_scheme(config, "inverse_leaky"),
        length=config.length,
        train=train,
        validation=choice.location,
        seed=config.seed,
        repeats=config.data.repeats,
        windows_seed=config.evaluation.seed,
        choice=choice,
    )
