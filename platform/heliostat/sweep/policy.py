"""Schedulers as decisions on one evaluation: nothing here runs anything.

`none` lets every trial go on. `asha` is Ray Tune's own `ASHAScheduler`, told of trials by our
names, so that a sweep that goes on can tell it first of everything that was seen before. `pbt` is
our own (Jaderberg et al. 2017, algorithm 1): Ray Tune's clones Tune checkpoints, which a training
under Ray Train v2 never makes, and skips every member that has none (ray 2.60.0), so it exploits
nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from heliostat.sweep.config import PbtConfig, SweepConfig
from heliostat.sweep.ledger import Point, TrialRecord

WORST = 1e30
"""Stands for a metric that is not a number: finite, since halving interpolates between values."""


@dataclass(frozen=True)
class Replacement:
    """A member gives way to a copy of a better one."""

    donor: TrialRecord


Decision = str | Replacement
"""`continue`, `stop`, `pause`, or what replaces the trial."""


class Policy(Protocol):
    """A scheduler."""

    @property
    def saves(self) -> bool:
        """Whether a checkpoint of each evaluation is needed."""
        ...

    def decide(self, record: TrialRecord, point: Point, others: Sequence[TrialRecord]) -> Decision:
        """What becomes of a trial after an evaluation; `others` are all other trials."""
        ...


def make_policy(settings: SweepConfig, records: Sequence[TrialRecord]) -> Policy:
    """The scheduler of a sweep, with everything that was seen before."""
    if settings.scheduler == "asha":
        return Halving(settings, records)
    return Population(settings) if settings.scheduler == "pbt" else Patience()


class Patience:
    """Every trial goes on to its end."""

    saves = False

    def decide(self, record: TrialRecord, point: Point, others: Sequence[TrialRecord]) -> Decision:
        """Always on."""
        return "continue"


@dataclass(frozen=True)
class _Named:
    """What Tune's scheduler needs to know of a trial."""

    trial_id: str


class Halving:
    """Asynchronous successive halving, by Ray Tune, and with hindsight.

    Tune compares a trial with those that were at its rung before it, once. The first trials of a
    sweep so pass every rung for want of others. We ask again at each evaluation: a trial that is
    not among the best of its newest rung any more, now that others have been there, stops as well.
    """

    saves = False

    def __init__(self, settings: SweepConfig, records: Sequence[TrialRecord]) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._settings = settings
        self._asha: Any = ASHAScheduler(
            time_attr="time",
            metric="value",
            # `_signed` turns everything so that more is better.
            mode="max",
            # Trials end by themselves; how long they are may itself be swept.
            max_t=10**9,
            grace_period=settings.asha.grace,
            reduction_factor=settings.asha.reduction,
        )
        self._known: set[str] = set()
        seen = [(record, point) for record in records for point in record.points]
        for record, point in sorted(seen, key=lambda pair: (pair[1].index, pair[0].number)):
            self.decide(record, point, ())

    def decide(self, record: TrialRecord, point: Point, others: Sequence[TrialRecord]) -> Decision:
        """Stop unless it is among the best of its rung."""
        trial = _Named(record.name)
        if record.name not in self._known:
            self._known.add(record.name)
            self._asha.on_trial_add(None, trial)
        time = self._time(point)
        value = signed(self._settings, point)
        action = self._asha.on_trial_result(None, trial, {"time": time, "value": value})
        if action == self._asha.STOP or self._is_outdone(record.at(point), others):
            return "stop"
        return "continue"

    def _is_outdone(self, record: TrialRecord, others: Sequence[TrialRecord]) -> bool:
        """Whether a trial is not among the best at its newest rung, by what is known now."""
        time = self._time(record.points[-1])
        rung = float(self._settings.asha.grace)
        if time < rung:
            return False
        while rung * self._settings.asha.reduction <= time:
            rung *= self._settings.asha.reduction
        mine = self._at_rung(record, rung)
        there = [self._at_rung(other, rung) for other in others]
        values = [value for value in (mine, *there) if value is not None]
        assert mine is not None
        share = 1 - 1 / self._settings.asha.reduction
        return len(values) > 1 and mine < float(np.quantile(values, share))

    def _at_rung(self, record: TrialRecord, rung: float) -> float | None:
        """What a trial had when it came to a rung; None if it never did."""
        reached = (point for point in record.points if self._time(point) >= rung)
        first = next(reached, None)
        return None if first is None else signed(self._settings, first)

    def _time(self, point: Point) -> int:
        return point.index if self._settings.asha.unit == "evaluation" else point.step


class Population:
    """Population-based training: at each decision the worst members give way to the best.

    A member is compared with what the others had at the same evaluation. Where there are more
    members than places, one that is ahead pauses until the others have caught up.
    """

    saves = True

    def __init__(self, settings: SweepConfig) -> None:
        self._settings = settings

    def decide(self, record: TrialRecord, point: Point, others: Sequence[TrialRecord]) -> Decision:
        """Pause while others wait for a place, else compare."""
        pbt: PbtConfig = self._settings.pbt
        if point.index % pbt.every or point.step >= point.steps:
            return "continue"
        waiting = [other for other in others if other.status in ("waiting", "paused")]
        if any(_reached(other) < point.index for other in waiting):
            return "pause"
        return self.compare(record, point, others)

    def compare(self, record: TrialRecord, point: Point, others: Sequence[TrialRecord]) -> Decision:
        """Replace the trial when it is among the worst at this evaluation."""
        values = {record.name: (signed(self._settings, point), record)}
        for other in others:
            if other.is_open and (same := _at(other, point.index)) is not None:
                values[other.name] = (signed(self._settings, same), other)
        ranked = sorted(values.values(), key=lambda entry: (entry[0], -entry[1].number))
        count = math.ceil(len(ranked) * self._settings.pbt.quantile)
        count = min(count, len(ranked) // 2)
        worst, best = ranked[:count], ranked[len(ranked) - count :]
        mine = values[record.name]
        if mine not in worst:
            return "continue"
        better = [donor for value, donor in best if value > mine[0]]
        if not better:
            return "continue"
        generator = random.Random(f"{self._settings.seed}-{record.name}-{point.index}")
        return Replacement(generator.choice(better))


def signed(settings: SweepConfig, point: Point) -> float:
    """The judged metric of an evaluation, turned so that more is better."""
    value = point.metrics.get(settings.metric, math.nan)
    if math.isnan(value):
        return -WORST
    value = max(-WORST, min(WORST, value))
    return value if settings.mode == "max" else -value


def _at(record: TrialRecord, index: int) -> Point | None:
    return next((point for point in record.points if point.index == index), None)


def _reached(record: TrialRecord) -> int:
    """The newest evaluation of a trial."""
    return record.points[-1].index if record.points else 0
