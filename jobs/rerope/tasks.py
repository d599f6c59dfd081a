"""What gradient descent trains here: a language model at length L, under a scheme of training.

Three models share everything but positions: plain rotary; rotary with queries scaled by ln t / ln L
(`log_n`); and that with inverse leaky positions (`inverse_leaky`), read with plain rope afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from heliostat.data.stream import Sample, Stream
from heliostat.storage import Location
from heliostat.train.engine import decay_groups
from heliostat.train.task import Batch, LossTerm, Tally
from jobs.corpora.windows import FixedWindowStream, WindowStream
from jobs.rerope.config import Config
from jobs.rerope.shapes import Shape, blank, build, shape_of, training_flops
from models.planned_lm import plan_for
from models.position_checks import require_training_reach
from models.positions import PositionPlan, PositionScheme

Variant = Literal["plain", "log_n", "inverse_leaky"]
VARIANTS: tuple[Variant, ...] = ("plain", "log_n", "inverse_leaky")
REACH = 8
"""Schemes are measured at up to this many training lengths."""
VALIDATION_WINDOWS = 192
"""Windows of the loss during training."""


def model_shape(config: Config, variant: Variant) -> Shape:
    """The shape of a model."""
    factor = config.inverse_leaky.base_factor if variant == "inverse_leaky" else 1.0
    return shape_of(config.model, length=config.length, base_factor=factor)


def training_scheme(config: Config, variant: Variant) -> PositionScheme:
    """The scheme that a model is trained with."""
    if variant == "plain":
        return PositionScheme("rope")
    if variant == "log_n":
        return PositionScheme("rope", log_n="train")
    inverse = config.inverse_leaky
    return PositionScheme(
        "inv_leaky_rerope", log_n="train", window=inverse.window, interval=inverse.interval
    )


@dataclass(frozen=True)
class WindowModelling:
    """Next-token prediction over windows of L tokens."""

    name: str
    shape: Shape
    scheme: PositionScheme
    """Of training."""
    length: int
    """L."""
    train: Location
    validation: Location
    seed: int
    repeats: float
    windows_seed: int
    """Seed of the windows of the loss during training."""

    def __post_init__(self) -> None:
        if self.scheme.name == "inv_leaky_rerope":
            require_training_reach(self.plan, REACH * self.length)

    @property
    def plan(self) -> PositionPlan:
        """The scheme of training at L."""
        return plan_for(self.shape, self.scheme, train_length=self.length, length=self.length)

    def model(self) -> nn.Module:
        """Random initial weights."""
        return build(self.shape, torch.Generator().manual_seed(self.seed))

    def meta_model(self) -> nn.Module:
        """The model without numbers, for estimates."""
        return blank(self.shape)

    def train_data(self) -> Stream:
        """Windows of L tokens and the one after them."""
        return WindowStream(self.train, self.length + 1, seed=self.seed, repeats=self.repeats)

    def eval_data(self) -> Stream:
        """Windows of test files, the same ones whatever the seed."""
        return FixedWindowStream(
            self.validation, self.length + 1, windows=VALIDATION_WINDOWS, seed=self.windows_seed
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Inputs, and for each the token after it."""
        rows = np.stack([cast(np.ndarray, sample["input_ids"]) for sample in samples])
        tokens = torch.from_numpy(rows)
        return {
            "input_ids": tokens[:, :-1].contiguous(),
            "targets": tokens[:, 1:].contiguous(),
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Every token is a target."""
        return {"tokens": batch["targets"].numel()}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """Cross entropy summed over targets."""
        return {"lm": LossTerm(self._sum(model, batch), "tokens")}

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """Mean cross entropy, nats a token, under the scheme of training."""
        return {"loss": Tally(self._sum(model, batch), batch["targets"].numel())}

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """Weight decay on matrices only."""
        return decay_groups(model)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward; attention counted in full, as torch's counter does."""
        rows, tokens = batch["input_ids"].shape
        return training_flops(self.shape, batch=rows, tokens=tokens)

    def example_batch(self, samples: int) -> Batch:
        """Full rows, for estimates."""
        rows = torch.zeros((samples, self.length), dtype=torch.int64)
        return {"input_ids": rows, "targets": rows.clone()}

    def _sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        is_plain = self.scheme == PositionScheme("rope")
        total: torch.Tensor = model(
            batch["input_ids"],
            targets_BT=batch["targets"],
            position_plan=None if is_plain else self.plan,
        )
        return total


def task_of(
    config: Config, variant: Variant, *, train: Location, validation: Location, seed: int
) -> WindowModelling:
    """The training of one model."""
    return WindowModelling(
        name=variant,
        shape=model_shape(config, variant),
        scheme=training_scheme(config, variant),
        length=config.length,
        train=train,
        validation=validation,
        seed=seed,
        repeats=config.data.repeats,
        windows_seed=config.evaluation.seed,
    )
