"""What a job gives so that it can be swept: `sweep.py` in its folder, with a dictionary `TRIALS`.

A kind of trial is two functions. `shared(config, run)` does what all trials have in common, once,
as stages of the sweep's own run: data, an earlier training, whatever trials only read. A trial gets
what it returned and must not copy it. `trial(config, trial)` is one trial under the config of that
trial; it trains with `trial.fit`, or measures a bundle, and returns its final metrics.

    TRIALS = {
        "train": TrialKind(shared=prepare, trial=fine_tune, keys=("dft",),
                           metrics=("top5", "loss"), evaluations=("top5", "loss")),
        "bundle": TrialKind(shared=read_data, trial=measure, keys=("dft.context",),
                            metrics=("top5",), uses_bundle=True),
    }
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from heliostat.config.resources import ResourcesConfig
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.config import FitConfig
from heliostat.train.fit import FitResult
from heliostat.train.task import Task


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common."""

    inputs: Sequence[Input]
    """What the result rests on, for the report."""
    values: Mapping[str, object] = field(default_factory=dict)
    """Sent to every trial: paths and numbers, not models or data."""


class Trial(Protocol):
    """One trial, as the job's function sees it."""

    @property
    def run(self) -> Run:
        """The trial's own run, in the sweep's folder; finished stages are not done again."""
        ...

    @property
    def shared(self) -> Mapping[str, object]:
        """What `shared` returned as `values`."""
        ...

    @property
    def bundle(self) -> Location:
        """The bundle that the sweep is over, for kinds that use one; it was verified."""
        ...

    def fit(
        self,
        task: Task,
        config: FitConfig,
        *,
        resources: ResourcesConfig,
        name: str | None = None,
        start_from: Location | None = None,
    ) -> FitResult:
        """`heliostat.fit`, judged by the sweep after each evaluation; once in a trial.

        Does not return when the sweep stops or pauses the trial; a trial that paused is called
        again, and the training goes on from its checkpoint.
        """
        ...

    def report(self, metrics: Mapping[str, float], *, step: int, steps: int) -> None:
        """Be judged without `fit`: for trials that train in a way of their own.

        Does not return when the sweep stops or pauses the trial; one that paused is begun again.
        """
        ...


@dataclass(frozen=True)
class TrialKind:
    """One kind of trial."""

    shared: Callable[[Any, Run], Shared]
    """Given the job's config and the sweep's run."""
    trial: Callable[[Any, Trial], Mapping[str, float]]
    """Given the trial's config and the trial; returns the final metrics."""
    metrics: tuple[str, ...]
    """Names of the final metrics."""
    keys: tuple[str, ...]
    """Sections or keys of the config that a trial looks at; what `shared` looks at is no trial's to
    change, so other keys cannot be swept."""
    evaluations: tuple[str, ...] = ()
    """Names of the metrics of each evaluation, for a kind that trains. Its workers get the
    resources of the config, the trial's own process none; a kind without training gets what the
    config gives one worker."""
    uses_bundle: bool = False
    """Whether trials need `sweep.bundle`."""
    is_served: bool = False
    """Whether the job's endpoint reads the keys of these trials: the best of them is served as it
    is, where other kinds are trained next."""

    @property
    def trains(self) -> bool:
        """Whether trials are judged as they go."""
        return bool(self.evaluations)
