"""Someone who decides after each evaluation whether a training goes on: a sweep's scheduler.

The workers stand still until they hear the verdict, so no step is spent after a "stop" and the
trials of a sweep are compared at the same steps however fast each of them is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from heliostat.errors import Interrupted


@dataclass(frozen=True)
class Evaluation:
    """What a judge is told."""

    step: int
    """Optimiser steps done."""
    steps: int
    """Optimiser steps of the whole training."""
    index: int
    """The number of the evaluation, 1 for the first."""
    metrics: dict[str, float]
    """Reduced over all workers."""


class Judge(Protocol):
    """Lives on the driver's side of a training."""

    @property
    def saves(self) -> bool:
        """Whether a checkpoint of the evaluation must be committed before it is judged."""
        ...

    def goes_on(self, evaluation: Evaluation) -> bool:
        """The verdict; may take its time. After the last step it changes nothing."""
        ...

    def wants_stop(self) -> bool:
        """Whether to stop at the next step, evaluation or not; asked several times a second."""
        ...


class JudgedToStop(Interrupted):
    """A training that ended because its judge said so; it was saved and can go on."""
