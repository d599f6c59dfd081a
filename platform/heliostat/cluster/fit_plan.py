"""What a job says about one of its trainings before anything starts, for `heliostat estimate`.

`jobs/NAME/job.py` gives a list of these from `plan(config)`, without preparing data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from heliostat.config.resources import ResourcesConfig
from heliostat.train.config import FitConfig

if TYPE_CHECKING:
    from torch import nn

    from heliostat.train.task import Batch, Task


@dataclass(frozen=True)
class FitPlan:
    """One call of `fit` as it will be made."""

    name: str
    """The task's name: `dapt`, `dft`."""
    task: Task
    fit: FitConfig
    resources: ResourcesConfig
    samples_per_epoch: int | None = None
    """Training samples; None when only prepared data tell."""
    tokens_per_sample: float | None = None
    """Tokens, pixels or steps in one sample, on average; None when the samples have none."""


@runtime_checkable
class MetaModel(Protocol):
    """A task that can build its model without reading weights, for models too big to build."""

    def meta_model(self) -> nn.Module:
        """The model as `model()` gives it, on torch's `meta` device: shapes without values."""
        ...


@runtime_checkable
class ExampleBatch(Protocol):
    """A task that can make up a batch of the usual shape before its data are prepared."""

    def example_batch(self, samples: int) -> Batch:
        """What `collate` gives for so many samples; the values do not matter."""
        ...
