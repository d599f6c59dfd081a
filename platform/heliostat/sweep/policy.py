"""Schedulers as decisions on one evaluation: nothing here runs anything.

`none` lets every trial go on. `asha` and `pbt` are our own. Ray Tune's ASHA (ray 2.60.0) decides
once whether a trial goes on, by those that were at its rung before: what comes first passes for
want of others, and what comes early among good ones is lost. Its PBT clones Tune checkpoints, which
a training under Ray Train v2 never makes, and skips every member that has none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from heliostat.sweep.config import PbtConfig, SweepConfig
from heliostat.sweep.ledger import Point, TrialRecord

WORST = 1e30
"""Stands for a metric that is not a number."""


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

    def decide(
        self, record: TrialRecord, point: Point, others: Sequence[TrialRecord], unstarted: int
    ) -> Decision:
        """What becomes of a trial after an evaluation.

        Args:
            record: the trial, with the evaluation.
            point: the evaluation.
            others: all other trials.
            unstarted: how many trials may still be begun.
        """
        ...

    def pick(
        self, waiting: Sequence[TrialRecord], records: Sequence[TrialRecord], unstarted: int
    ) -> TrialRecord | None:
        """Which of those that wait or pause takes a free place; None: rather a new one."""
        ...

    def outdone(self, records: Sequence[TrialRecord], unstarted: int) -> list[TrialRecord]:
        """Paused trials that will never go on."""
        ...


def make_policy(settings: SweepConfig) -> Policy:
    """The scheduler of a sweep."""
    if settings.scheduler == "asha":
        return Halving(settings)
    return Population(settings) if settings.scheduler == "pbt" else Patience()


class Patience:
    """Every trial goes on to its end."""

    saves = False

    def decide(
        self, record: TrialRecord, point: Point, others: Sequence[TrialRecord], unstarted: int
    ) -> Decision:
        """Always on."""
        return "continue"

    def pick(
        self, waiting: Sequence[TrialRecord], records: Sequence[TrialRecord], unstarted: int
    ) -> TrialRecord | None:
        """What was cut off first."""
        return waiting[0] if waiting else None

    def outdone(self, records: Sequence[TrialRecord], unstarted: int) -> list[TrialRecord]:
        """None."""
        return []


@dataclass(frozen=True)
class _Rung:
    """What is known at a rung."""

    ranked: list[TrialRecord]
    """Those that have been there, the best first."""
    coming: int
    """How many may still come."""
    keep: int
    """How many of all of them go on."""

    def is_lost(self, record: TrialRecord) -> bool:
        """Whether a trial that was here is not among the best any more."""
        return record not in self.ranked[: self.keep]

    def best(self, reduction: float, sure: bool) -> list[TrialRecord]:
        """One in `reduction` of those that have been here, the best first.

        With `sure`, only those that stay among the best whatever comes.
        """
        count = self.keep - self.coming if sure else int(len(self.ranked) / reduction)
        return self.ranked[: max(0, count if self.coming else self.keep)]


class Halving:
    """Asynchronous successive halving (Li et al. 2020, algorithm 2).

    At a rung a trial pauses until it is among the best one in `reduction`. The trials of a grid or
    of random draws are known beforehand: a place goes to one that has to come to a rung in any case
    before it goes to the best so far, so fewer go on by mistake than in the paper. Optuna learns
    from trials that went on, so with it they go on first, as in the paper; and so they do where the
    budget is steps or minutes.
    """

    saves = False

    def __init__(self, settings: SweepConfig) -> None:
        self._settings = settings
        self._reduction = settings.asha.reduction
        budget = settings.budget
        # With a limit of steps or time nobody knows how many trials there will be.
        is_counted = budget.steps is None and budget.minutes is None
        self._is_patient = settings.searcher != "optuna" and is_counted

    def decide(
        self, record: TrialRecord, point: Point, others: Sequence[TrialRecord], unstarted: int
    ) -> Decision:
        """Stop, or at a rung pause, unless it is among the best there."""
        records = [record, *others]
        heights = self._heights(records)
        height = self._height(record, heights)
        if height < 0:
            return "continue"
        rung = self._rungs(records, heights, unstarted)[height]
        if rung.is_lost(record):
            return "stop"
        before = replace(record, points=record.points[:-1])
        if self._height(before, heights) == height:
            return "continue"
        return "continue" if record in rung.best(self._reduction, self._is_patient) else "pause"

    def pick(
        self, waiting: Sequence[TrialRecord], records: Sequence[TrialRecord], unstarted: int
    ) -> TrialRecord | None:
        """What was cut off, then who may go on from the highest rung."""
        for record in waiting:
            if record.status == "waiting":
                return record
        heights = self._heights(records)
        rungs = self._rungs(records, heights, unstarted)
        paused = {record.name: self._height(record, heights) for record in waiting}
        if self._is_patient:
            found = self._highest(paused, rungs, sure=True)
            if found is not None or unstarted:
                return found
        return self._highest(paused, rungs, sure=False)

    def outdone(self, records: Sequence[TrialRecord], unstarted: int) -> list[TrialRecord]:
        """Those that are not among the best of their rung, and will not be."""
        heights = self._heights(records)
        rungs = self._rungs(records, heights, unstarted)
        return [
            record
            for record in records
            if record.status == "paused" and rungs[self._height(record, heights)].is_lost(record)
        ]

    def _highest(
        self, paused: Mapping[str, int], rungs: Sequence[_Rung], *, sure: bool
    ) -> TrialRecord | None:
        """Who may go on from the highest rung; `paused` are those that wait there, by name."""
        for height in range(len(rungs) - 1, -1, -1):
            for record in rungs[height].best(self._reduction, sure):
                if paused.get(record.name) == height:
                    return record
        return None

    def _rungs(
        self, records: Sequence[TrialRecord], heights: Sequence[float], unstarted: int
    ) -> list[_Rung]:
        """All rungs that a trial has reached, the lowest first; who failed keeps no place."""
        found: list[_Rung] = []
        below = [one for one in records if one.is_open and self._height(one, heights) < 0]
        coming = unstarted + len(below)
        for number, height in enumerate(heights):
            there = [(self._at(one, height), one) for one in records if one.status != "failed"]
            reached = [(value, one) for value, one in there if value is not None]
            reached.sort(key=lambda entry: (-entry[0], entry[1].number))
            ranked = [one for _, one in reached]
            keep = max(1, int((len(ranked) + coming) / self._reduction))
            found.append(_Rung(ranked, coming, keep))
            best = ranked[:keep]
            on_the_way = sum(one.is_open and self._height(one, heights) == number for one in best)
            coming = on_the_way + max(0, keep - len(best))
        return found

    def _heights(self, records: Sequence[TrialRecord]) -> list[float]:
        """Where the rungs are, as far as any trial has come: at evaluations, no two at the same."""
        points = [point for record in records for point in record.points]
        if not points:
            return []
        furthest = max(map(self._time, points))
        interval = max(self._time(point) / point.index for point in points)
        heights = list[float]()
        height = self._settings.asha.grace / interval
        while math.ceil(height) * interval <= furthest:
            heights.append(math.ceil(height) * interval)
            height = max(math.ceil(height) + 1, math.ceil(height) * self._reduction)
        return heights

    def _height(self, record: TrialRecord, heights: Sequence[float]) -> int:
        """The number of the highest rung that a trial has reached; -1 below the first."""
        done = max(map(self._time, record.points), default=0)
        return sum(height <= done for height in heights) - 1

    def _at(self, record: TrialRecord, height: float) -> float | None:
        """What a trial had when it came to a rung; None if it never did."""
        reached = (point for point in record.points if self._time(point) >= height)
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

    def pick(
        self, waiting: Sequence[TrialRecord], records: Sequence[TrialRecord], unstarted: int
    ) -> TrialRecord | None:
        """Who is furthest behind."""
        return min(waiting, key=_done, default=None)

    def outdone(self, records: Sequence[TrialRecord], unstarted: int) -> list[TrialRecord]:
        """None: who is among the worst is replaced."""
        return []

    def decide(
        self, record: TrialRecord, point: Point, others: Sequence[TrialRecord], unstarted: int
    ) -> Decision:
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


def _done(record: TrialRecord) -> int:
    """How far a trial has come, in steps of the whole training."""
    return record.points[-1].step if record.points else record.parent_step


def _reached(record: TrialRecord) -> int:
    """The newest evaluation of a trial."""
    return record.points[-1].index if record.points else 0
