"""What a sweep found: its trials in order of merit, the best one, and those that no other beats.

The best is sought among trials that finished, before those that were stopped: a value halfway is no
promise. A trial that exceeds a limit of `sweep.at_most` cannot be the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliostat.runs.summary import Cell
from heliostat.sweep.config import SweepConfig
from heliostat.sweep.ledger import TrialRecord
from heliostat.sweep.space import Space

ENDED = ("finished", "stopped", "replaced")
"""Statuses of trials that have a value."""


@dataclass(frozen=True)
class Outcome:
    """A sweep, judged."""

    settings: SweepConfig
    records: tuple[TrialRecord, ...]
    """In order of merit; those without a value last."""
    best: TrialRecord | None
    """None if no trial has a value that is allowed."""
    front: frozenset[str]
    """Trials that none beats in the judged and all second metrics; empty without second metrics."""

    @property
    def steps(self) -> int:
        """Optimiser steps over all trials."""
        return sum(record.steps for record in self.records)

    @property
    def columns(self) -> tuple[str, ...]:
        """The header of the table."""
        shown = [self.settings.metric, *self.settings.second, *self.settings.show]
        head = ["trial", "status", *self.all_keys, *dict.fromkeys(shown)]
        if self.front:
            head.append("unbeaten")
        if any(record.parent for record in self.records):
            head.append("from")
        return (*head, "steps", "seconds")

    @property
    def keys(self) -> list[str]:
        """The keys that were varied."""
        return [key for key, values in self.settings.space.items() if values is not None]

    @property
    def all_keys(self) -> list[str]:
        """The keys that were varied, each followed by those that went with it."""
        ranges = {key: values for key, values in self.settings.space.items() if values is not None}
        return Space(ranges).keys

    def rows(self) -> list[tuple[Cell, ...]]:
        """The table, one row a trial."""
        return [self._row(record) for record in self.records]

    def _row(self, record: TrialRecord) -> tuple[Cell, ...]:
        shown = dict.fromkeys([self.settings.metric, *self.settings.second, *self.settings.show])
        is_best = self.best is not None and record.name == self.best.name
        row: list[Cell] = [record.name + (" (best)" if is_best else ""), record.status]
        row += [_cell(record.values.get(key)) for key in self.all_keys]
        row += [_number(record.value(name)) for name in shown]
        if "unbeaten" in self.columns:
            row.append("yes" if record.name in self.front else "")
        if "from" in self.columns:
            row.append(f"{record.parent} at step {record.parent_step}" if record.parent else "")
        return (*row, record.steps, round(record.seconds, 1))


def judge_sweep(settings: SweepConfig, records: Sequence[TrialRecord]) -> Outcome:
    """Order trials, choose the best and find the front."""

    def merit(record: TrialRecord) -> tuple[bool, float, int]:
        value = _directed(record, settings.metric, settings.mode)
        # What is not a number sorts as the worst number.
        return record.status in ENDED, -math.inf if math.isnan(value) else value, -record.number

    ordered = sorted(records, key=merit, reverse=True)
    allowed = [record for record in ordered if _is_allowed(settings, record)]
    finished = [record for record in allowed if record.status == "finished"]
    best = next(iter([*finished, *allowed]), None)
    return Outcome(settings, tuple(ordered), best, front_of(settings, allowed))


def front_of(settings: SweepConfig, records: Sequence[TrialRecord]) -> frozenset[str]:
    """The Pareto front: finished trials than which none is as good in everything and better in
    something."""
    if not settings.second:
        return frozenset()
    metrics = {settings.metric: settings.mode, **settings.second}
    points = {
        record.name: [_directed(record, name, mode) for name, mode in metrics.items()]
        for record in records
        if record.status == "finished"
    }
    known = {name: point for name, point in points.items() if not any(map(math.isnan, point))}
    return frozenset(
        name
        for name, point in known.items()
        if not any(_beats(other, point) for other in known.values())
    )


def _beats(left: Sequence[float], right: Sequence[float]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _is_allowed(settings: SweepConfig, record: TrialRecord) -> bool:
    if record.status not in ENDED or math.isnan(record.value(settings.metric)):
        return False
    # A metric that is missing cannot be said to be within its limit.
    return all(record.value(name) <= limit for name, limit in settings.at_most.items())


def _directed(record: TrialRecord, metric: str, mode: str) -> float:
    """A metric turned so that more is better."""
    value = record.value(metric)
    return value if mode == "max" else -value


def _cell(value: object) -> Cell:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, (int, float, str)) else "null"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
