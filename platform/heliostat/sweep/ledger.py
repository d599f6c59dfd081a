"""The trials of a sweep on record: one small file a trial, rewritten atomically at every change.

The ledger is the one truth about a sweep. Nothing that Ray Tune keeps is ever read again: a sweep
that goes on begins a new Tune experiment with what is not finished here, so a trial is in the table
once however often anything was restarted, and no pickle is read from a run folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from heliostat.errors import UserError
from heliostat.runs import clock
from heliostat.runs.canonical import pretty
from heliostat.storage import Location
from heliostat.sweep.space import Values

LEDGER = "ledger"
ELAPSED = "elapsed.txt"

Status = Literal[
    "waiting", "running", "paused", "finished", "stopped", "replaced", "failed", "refused"
]
"""`waiting` for a place; `paused` by the scheduler until others have come as far; `stopped` by it
for good; `replaced` by a copy of a better member; `refused` by the job's own checks."""
OPEN: tuple[Status, ...] = ("waiting", "running", "paused")


@dataclass(frozen=True)
class Point:
    """One evaluation of a trial."""

    step: int
    steps: int
    """Of the whole training."""
    index: int
    metrics: Mapping[str, float]
    stage: str = ""
    """The stage of the trial's run that was evaluated; empty for a trial that trains in a way of
    its own."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what it was given, and what became of it."""

    name: str
    number: int
    """Counted from 0 over the sweep; a member of a population keeps its number."""
    values: Values
    status: Status = "waiting"
    generation: int = 0
    """How often the member was replaced before."""
    parent: str | None = None
    """The trial whose checkpoint this one began with."""
    parent_step: int = 0
    """The optimiser step of that checkpoint."""
    branch: str | None = None
    """Where that checkpoint is."""
    points: tuple[Point, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """At the end; of a trial that was stopped, its last evaluation."""
    steps: int = 0
    """Optimiser steps that this trial itself has done."""
    seconds: float = 0.0
    """At work, over all attempts."""
    attempts: int = 0
    """How often it was started."""
    started: str | None = None
    ended: str | None = None
    error: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is something left to do."""
        return self.status in OPEN

    def at(self, point: Point) -> TrialRecord:
        """With one more evaluation; one at the same step or later was undone by a restart."""
        kept = tuple(old for old in self.points if old.step < point.step)
        steps = max(self.steps, point.step - self.parent_step)
        return replace(self, points=(*kept, point), steps=steps)

    def value(self, metric: str) -> float:
        """A metric at the end, or now; not a number where there is none."""
        latest = self.metrics or (self.points[-1].metrics if self.points else {})
        return latest.get(metric, math.nan)


class Ledger:
    """All trials of a sweep, in memory and in its folder; written by the sweep's own process."""

    def __init__(self, sweep: Location) -> None:
        self._folder = sweep / LEDGER
        self._records: dict[str, TrialRecord] = {}
        for file in self._folder.list():
            if file.name.endswith(".json"):
                record = _read(file)
                self._records[record.name] = record

    def records(self) -> list[TrialRecord]:
        """All trials by number, and of a member the earlier ones first."""
        found = self._records.values()
        return sorted(found, key=lambda record: (record.number, record.generation))

    def __getitem__(self, name: str) -> TrialRecord:
        return self._records[name]

    def write(self, record: TrialRecord) -> TrialRecord:
        """Put a trial on record, or change what is."""
        self._records[record.name] = record
        (self._folder / f"{record.name}.json").write_text(pretty(asdict(record)))
        return record

    def elapsed_s(self) -> float:
        """Wall-clock seconds that the sweep had gone on for when it was noted last."""
        file = self._folder / ELAPSED
        return float(file.read_text()) if file.exists() else 0.0

    def note_elapsed(self, seconds: float) -> None:
        """Keep how long the sweep has gone on for."""
        (self._folder / ELAPSED).write_text(f"{seconds:.3f}")

    def end(self, name: str, status: Status, **changes: Any) -> TrialRecord:
        """End a trial."""
        return self.write(replace(self._records[name], status=status, ended=clock.now(), **changes))


def is_at_work(sweep: Location, name: str) -> bool:
    """Whether a trial still is, asked from another process than the sweep's own."""
    return _read(sweep / LEDGER / f"{name}.json").status == "running"


def trial_name(number: int, generation: int = 0) -> str:
    """`t003`, and after it was replaced `t003-1`, `t003-2`, ..."""
    return f"t{number:03d}" + (f"-{generation}" if generation else "")


def _read(file: Location) -> TrialRecord:
    try:
        content = json.loads(file.read_text())
        points = tuple(
            Point(**{**point, "metrics": _floats(point["metrics"])}) for point in content["points"]
        )
        metrics = _floats(content["metrics"])
        return TrialRecord(**{**content, "points": points, "metrics": metrics})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file.uri} is no record of a trial: {error}") from error


def _floats(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}
