"""What a job must tell `fit` about one thing that gradient descent trains.

A task knows its model, its data, its loss and its metrics. It knows nothing of ranks, devices,
precision, accumulation or checkpoints. It is pickled once to every worker, so it holds paths and
numbers, not models or data.

The loss is a sum of terms, and every term names the count that normalises it: a token-level cross
entropy is a sum over tokens divided by the number of target tokens, a balance loss is a sum over
sequences divided by the number of sequences. `fit` adds the counts over all micro batches and all
ranks before the first backward pass, so the gradient is exactly that of one big batch, however the
batch is cut.
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

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """The loss terms on a micro batch; their normalised sum is what is minimised."""
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
