"""What a job must tell `fit` about one thing that gradient descent trains.

A task knows its model, its data, its loss and its metrics. It knows nothing of ranks, devices,
precision, accumulation or checkpoints. It is pickled once to every worker, so it holds paths and
numbers, not models or data.

The loss is a sum of terms, and every term names the count that normalises it: a token-level cross
entropy is a sum over tokens divided by the number of target tokens, a balance loss is a sum over
sequences divided by the number of sequences. `fit` adds the counts over all micro batches and all
ranks before the first backward pass, so the gradient is exactly that of one big batch, however the
batch is cut.

Some models carry buffers that follow the data instead of a gradient, such as the bias that keeps
experts equally busy. Such a task returns `Observed` sums beside its loss terms and has
`after_update` (`Steered`): it is called on every rank after every optimiser step that was applied,
with the sums over all micro batches and ranks, before anything else looks at the model. The buffers
belong to the state dict, so checkpoints carry them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from heliostat.data.stream import Sample, Stream

Batch = dict[str, torch.Tensor]


class LossTerm(NamedTuple):
    """One additive part of the loss on one micro batch."""

    total: torch.Tensor
    """Scalar: the sum over the micro batch, differentiable."""
    per: str
    """The count, a key of `Task.counts`, whose sum over the global batch divides `total`."""


class Observed(NamedTuple):
    """Figures of one micro batch that `Steered.after_update` is given, no part of the loss."""

    values: torch.Tensor
    """Summed over micro batches and ranks, element by element; of the same shape in all of them."""


class Steering(NamedTuple):
    """What `Steered.after_update` says of what it did."""

    metrics: Mapping[str, float]
    """Recorded with the step."""
    notes: Sequence[str] = ()
    """What the user should know now, such as a warning; shown once for each."""


@dataclass(frozen=True)
class Tally:
    """A metric as numerator and denominator, so that it can be summed over batches and ranks."""

    total: float | torch.Tensor
    count: float | torch.Tensor


@runtime_checkable
class Task(Protocol):
    """One thing to train. Implementations are small frozen dataclasses in `jobs/NAME/`."""

    @property
    def name(self) -> str:
        """A short name, used for folders and metrics: `dapt`, `dft`."""
        ...

    def model(self) -> nn.Module:
        """The model with its initial weights, on the CPU, in float32; the same on every rank."""
        ...

    def train_data(self) -> Stream:
        """The training samples."""
        ...

    def eval_data(self) -> Stream:
        """The samples to evaluate during training; every one is counted exactly once."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples into tensors. Called with one sample or more."""
        ...

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """How many tokens, sequences, ... the batch holds; the normalisers of the loss terms."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm | Observed]:
        """The loss terms on a micro batch; their normalised sum is what is minimised.

        Observed sums may stand among them, in every micro batch the same ones.
        """
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tally]:
        """The metrics of a batch as sums and counts; called without gradient."""
        ...

    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        """Parameter groups: `params`, and where they differ `weight_decay` and `lr_scale`."""
        ...

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of forward and backward on the batch, 0.0 when unknown."""
        ...


@runtime_checkable
class Steered(Protocol):
    """A task whose model has buffers that follow what was observed in the data."""

    def faults(self, observed: Mapping[str, torch.Tensor]) -> Sequence[str]:
        """What broke where, as far as it shows; called when the loss of a step or its gradient is
        not finite, or a sum of what was observed in it.

        Args:
            observed: float64 sums over this rank's micro batches of that step.
        """
        ...

    def after_update(
        self, model: nn.Module, observed: Mapping[str, torch.Tensor], step: int, steps: int
    ) -> Steering:
        """Change the model's buffers after an optimiser step; the same on every rank.

        Args:
            model: with the updated weights.
            observed: float64 sums over the global batch, by the names that `loss` gave them.
            step: the number of the step, from 1.
            steps: how many the whole training has.
        """
        ...
