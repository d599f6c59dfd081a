"""`result.json`: what became of a run, readable by people and programs.

It is rewritten whenever something changes (a new attempt, a finished stage, the end), each time
atomically, so it is true at any moment but for one thing: a process that is killed cannot write
that it was. A run whose record says `running` and whose lock nobody holds was stopped, and
`listing.py` shows it so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from heliostat.errors import UserError
from heliostat.runs.canonical import pretty
from heliostat.runs.clock import seconds_between
from heliostat.storage import Location

RESULT_NAME = "result.json"

Status = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Attempt:
    """One process that worked on the run."""

    number: int
    status: Status
    host: str
    pid: int
    started: str
    ended: str | None
    """Of a killed process the last sign of life."""
    error: str | None = None

    @property
    def seconds(self) -> float:
        """How long it worked, as far as is known."""
        return 0.0 if self.ended is None else seconds_between(self.started, self.ended)


@dataclass(frozen=True)
class StageTime:
    """How a stage went."""

    status: Literal["running", "finished"]
    seconds: float
    """Over all attempts that ended it or were told of its failure."""
    attempts: int


@dataclass(frozen=True)
class RunRecord:
    """The content of `result.json`."""

    id: str
    job: str
    status: Status
    seeds: tuple[int, ...]
    digest: str
    """Of the resolved config."""
    created: str
    seconds: float
    """Work of all attempts together, without the time between them."""
    metrics: dict[str, float | None]
    """The final ones; empty until the run is finished. None stands for what is not finite."""
    stages: dict[str, StageTime]
    attempts: tuple[Attempt, ...]
    versions: dict[str, str]
    hardware: dict[str, object]
    code: dict[str, object]
    """The git commit and whether the working tree differs from it."""

    def with_attempt(self, attempt: Attempt) -> RunRecord:
        """The record with an attempt added, or changed when its number is known already."""
        others = tuple(item for item in self.attempts if item.number != attempt.number)
        attempts = (*others, attempt)
        return replace(self, attempts=attempts, seconds=sum(item.seconds for item in attempts))


def write_record(run_folder: Location, record: RunRecord) -> None:
    """Write `result.json`."""
    (run_folder / RESULT_NAME).write_text(pretty(asdict(record)))


def read_record(run_folder: Location) -> RunRecord:
    """Read `result.json`; a UserError when there is none or it is something else."""
    file = run_folder / RESULT_NAME
    if not file.exists():
        raise UserError(f"{run_folder.uri} is no run: it has no {RESULT_NAME}")
    try:
        values = json.loads(file.read_text())
        values["seeds"] = tuple(values["seeds"])
        values["attempts"] = tuple(Attempt(**item) for item in values["attempts"])
        values["stages"] = {name: StageTime(**item) for name, item in values["stages"].items()}
        return RunRecord(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file.uri} is not the record of a run: {error}") from error
