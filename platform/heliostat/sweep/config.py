"""What a user can say about a sweep: the section `sweep` of a job's config.

It names keys of the config with the values to try, what is judged, and how much may be spent. Which
keys exist is checked against the job's own schema (`space.py`), which metrics exist against what
the job says a trial reports (`contract.py`), both before Ray starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from heliostat.config.contract import JobConfig
from heliostat.errors import ConfigError

MODES = ("min", "max")
SCHEDULERS = ("none", "asha", "pbt")
SEARCHERS = ("grid", "random", "optuna")
UNITS = ("evaluation", "step")

Value = bool | int | float | str | None
"""What a key can be set to."""


@dataclass(frozen=True)
class RangeConfig:
    """The values of one key; exactly one of the kinds is given."""

    IS_WHOLE: ClassVar[bool] = True
    """A later file or override says anew what the values are."""

    choice: list[bool | int | float | str | None] | None = None
    """One of these."""
    grid: list[bool | int | float | str | None] | None = None
    """Each of these, also where the other keys are drawn at random."""
    uniform: list[float] | None = None
    """[lowest, highest], every number as likely."""
    log_uniform: list[float] | None = None
    """[lowest, highest], every order of magnitude as likely."""
    integer: list[int] | None = None
    """[lowest, highest], whole numbers, both ends included."""
    along: dict[str, list[bool | int | float | str | None]] = field(default_factory=dict)
    """Further keys that go with this one: for each of its listed values, in their order, what the
    other key then is."""

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{' and '.join(given) or 'nothing'} is given; expected exactly one of "
                f"{', '.join(KINDS)}"
            )
        values = getattr(self, given[0])
        if given[0] in LISTED:
            self._check_list(given[0], values)
        elif len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
            raise ConfigError(f"{given[0]} is {values}; expected [lowest, highest]")
        elif given[0] == "log_uniform" and values[0] <= 0:
            raise ConfigError(f"log_uniform is {values}; expected numbers above 0")
        listed = (self.listed or []) if self.along else []
        for key, others in self.along.items():
            if len(others) != len(listed):
                raise ConfigError(
                    f"along.{key} has {len(others)} values; expected one for each of the listed "
                    f"values of this key, which are {len(listed) or 'none'}"
                )

    def _check_list(self, name: str, values: list[Value]) -> None:
        if not values:
            raise ConfigError(f"{name} is empty; expected at least one value")
        if len({(type(value), value) for value in values}) < len(values):
            raise ConfigError(f"{name} is {values}; expected each value once")

    def place(self, value: Value) -> int:
        """Where a value stands among those listed; true is not 1."""
        listed = self.listed or []
        same = [(isinstance(one, bool), one) for one in listed]
        return same.index((isinstance(value, bool), value))

    @property
    def listed(self) -> list[Value] | None:
        """All values where they can be listed, else None."""
        if self.integer is not None:
            return list(range(self.integer[0], self.integer[1] + 1))
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest of numbers between two bounds, else None."""
        pair = self.uniform or self.log_uniform or self.integer
        return None if pair is None else (pair[0], pair[1])


LISTED = ("choice", "grid")
KINDS = (*LISTED, "uniform", "log_uniform", "integer")


@dataclass(frozen=True)
class BudgetConfig:
    """When no further trial is started; those that run are not cut off."""

    trials: int | None = None
    """Trials in all (members, for pbt); null: every cell of a grid."""
    steps: int | None = None
    """Optimiser steps over all trials."""
    minutes: float | None = None
    """Wall-clock minutes, those before a restart included."""

    def __post_init__(self) -> None:
        for name in ("trials", "steps", "minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; expected a number above 0, or null")


@dataclass(frozen=True)
class AshaConfig:
    """Asynchronous successive halving (Li et al. 2020): of those at a rung the best go on."""

    unit: str = field(default="evaluation", metadata={"choices": UNITS})
    """What rungs are counted in: evaluations of the trial, or its optimiser steps."""
    grace: int = 1
    """The first rung; no trial stops before it."""
    reduction: float = 3.0
    """Each rung is so many times the one before, and one trial in so many goes on from it."""

    def __post_init__(self) -> None:
        if self.grace < 1 or self.reduction <= 1:
            raise ConfigError(
                f"grace is {self.grace} and reduction is {self.reduction}; expected at least 1, "
                "and above 1"
            )


@dataclass(frozen=True)
class PbtConfig:
    """Population-based training (Jaderberg et al. 2017): the worst go on from the best."""

    every: int = 1
    """Evaluations between two decisions."""
    quantile: float = 0.25
    """Share of the members that give way, and share of those that are copied."""
    resample: float = 0.25
    """Probability with which a key is drawn anew instead of changed a little."""
    factor: float = 1.2
    """What a number is multiplied with or divided by; listed values move to a neighbour."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.factor <= 1:
            raise ConfigError(
                f"every is {self.every} and factor is {self.factor}; expected at least 1, above 1"
            )
        if not 0 < self.quantile <= 0.5 or not 0 <= self.resample <= 1:
            raise ConfigError(
                f"quantile is {self.quantile} and resample is {self.resample}; expected above 0 "
                "and at most 0.5, and 0 to 1"
            )


@dataclass(frozen=True)
class SweepConfig:
    """A sweep."""

    trial: str = "train"
    """What one trial is: one of the kinds in the job's sweep.py."""
    bundle: str | None = None
    """The bundle that trials without training use: its folder or URI, JOB, JOB@ALIAS or JOB:3;
    null: the job's champion."""
    space: dict[str, RangeConfig | None] = field(default_factory=dict)
    """Dotted key of the config to the values to try; null leaves a key out that a file below
    named."""
    metric: str = "loss"
    """What decides which trial is best."""
    mode: str = field(default="min", metadata={"choices": MODES})
    """Whether the best is the lowest or the highest."""
    second: dict[str, str] = field(default_factory=dict)
    """Second metrics, each with the direction that is better (min or max): the trials that no other
    beats in all of them are marked."""
    show: list[str] = field(default_factory=list)
    """Further metrics to show."""
    at_most: dict[str, float] = field(default_factory=dict)
    """Metrics that must not exceed a value in the best trial."""
    searcher: str = field(default="random", metadata={"choices": SEARCHERS})
    """How values are chosen: all combinations, at random, or by what earlier trials have shown."""
    scheduler: str = field(default="none", metadata={"choices": SCHEDULERS})
    """Whether trials are stopped early (asha), or the worst go on from the best (pbt)."""
    seed: int = 0
    """Seed of everything that is drawn."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """How much may be spent."""
    asha: AshaConfig = field(default_factory=AshaConfig)
    """Successive halving."""
    pbt: PbtConfig = field(default_factory=PbtConfig)
    """Population-based training."""
    parallel: int | None = None
    """Trials at a time at most; null: as many as the cluster holds."""
    max_failures: int = 2
    """How often a trial whose own process died is started again."""

    def __post_init__(self) -> None:
        for name, mode in self.second.items():
            if mode not in MODES:
                raise ConfigError(f"second.{name} is {mode}; expected min or max")
        if self.parallel is not None and self.parallel < 1:
            raise ConfigError(f"parallel is {self.parallel}; expected at least 1, or null")
        if self.scheduler == "pbt" and self.searcher != "random":
            raise ConfigError(
                f"scheduler is pbt and searcher is {self.searcher}: the members of a population "
                "begin at random; set searcher to random"
            )
        if self.scheduler == "pbt" and (self.budget.steps or self.budget.minutes):
            raise ConfigError(
                "scheduler is pbt, whose members all begin at once, so budget.steps and "
                "budget.minutes would end nothing; give budget.trials and the length of a training"
            )
        if self.space and self.searcher != "grid" and self.budget.trials is None:
            raise ConfigError(
                f"searcher is {self.searcher} and budget.trials is null: only a grid knows how "
                "many trials it has; give budget.trials"
            )
        named = [key for key, values in self.space.items() if values is not None]
        for key, values in self.space.items():
            self._check_searchable(key, values)
            for other in {} if values is None else values.along:
                if other in named:
                    raise ConfigError(f"space.{key}.along names {other}, which is named already")
                named.append(other)

    def _check_searchable(self, key: str, values: RangeConfig | None) -> None:
        if values is None:
            return
        if self.searcher == "grid" and values.listed is None:
            raise ConfigError(
                f"searcher is grid, but space.{key} is a continuous range: list its values as "
                "grid, or set searcher to random or optuna"
            )
        if values.grid is not None and (self.searcher == "optuna" or self.scheduler == "pbt"):
            raise ConfigError(
                f"space.{key} is a grid, which {self.searcher} with scheduler {self.scheduler} "
                "cannot go through in full: write choice"
            )


def sweep_config(config: JobConfig) -> SweepConfig:
    """The section `sweep` of a job's config."""
    found = getattr(config, "sweep", None)
    if not isinstance(found, SweepConfig):
        raise ConfigError("this job has no section sweep in its config, so it cannot be swept")
    return found
