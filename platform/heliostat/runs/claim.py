"""Claims: a published result measured in miniature, and whether it holds.

A claim compares a method with its baselines over several seeds, and says beforehand, as criteria
with thresholds, what would count as holding. Everything measured is written down, the arms that
lose included, with the machine, the versions and the inputs, so that a page may quote it and anyone
may measure it again. Whether a claim holds is computed from its criteria, never stated.
"""

from __future__ import annotations

import json
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from heliostat.errors import UserError
from heliostat.runs import clock
from heliostat.runs.canonical import pretty
from heliostat.runs.environment import hardware, versions
from heliostat.runs.inputs import Input
from heliostat.storage import Location

CLAIM_NAME = "claim.json"

Relation = Literal[">=", ">", "<=", "<"]
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Measurement:
    """What one arm reached with one seed."""

    arm: str
    seed: int
    figures: Mapping[str, float]
    """Name (with its unit where it has one) to value."""


@dataclass(frozen=True)
class Criterion:
    """One condition of the claim, its threshold fixed before anything was measured."""

    name: str
    what: str
    """In words: which figure of which arms, over which seeds."""
    measured: float
    relation: Relation
    threshold: float

    @property
    def holds(self) -> bool:
        """Whether the measured figure meets the threshold; one that is not a number never does."""
        return _RELATIONS[self.relation](self.measured, self.threshold)


@dataclass(frozen=True)
class Spread:
    """A figure of one arm over its seeds."""

    mean: float
    std: float
    """Sample standard deviation; 0 for a single seed."""
    seeds: int


@dataclass(frozen=True)
class Part:
    """Another run that a claim took measurements from (`heliostat.runs.measured`)."""

    run: str
    date: str
    seconds: float
    machine: Mapping[str, object]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class ClaimResult:
    """A measured claim; the content of `claim.json`."""

    job: str
    statement: str
    """The published result, in one sentence with its source."""
    size: str
    """The size of the config it was measured at."""
    method: str
    """The arm that should win."""
    baselines: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    criteria: tuple[Criterion, ...]
    inputs: tuple[Input, ...]
    command: str
    """What to type to measure it again."""
    seconds: float
    """What this run took; those of the parts took their own."""
    date: str = field(default_factory=clock.now)
    machine: Mapping[str, object] = field(default_factory=hardware)
    versions: Mapping[str, str] = field(default_factory=versions)
    parts: tuple[Part, ...] = ()
    """Earlier runs that measured a part of it."""

    def __post_init__(self) -> None:
        arms = {item.arm for item in self.measurements}
        absent = [arm for arm in (self.method, *self.baselines) if arm not in arms]
        if not self.baselines or absent:
            raise ValueError(
                f"the claim of {self.job} needs figures of its method and of at least one "
                f"baseline; it has none of {', '.join(absent) or 'a baseline'}"
            )
        if not self.criteria or not self.inputs:
            raise ValueError(f"the claim of {self.job} needs criteria and inputs")

    @property
    def holds(self) -> bool:
        """Whether every criterion holds."""
        return all(criterion.holds for criterion in self.criteria)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that was used."""
        return tuple(sorted({item.seed for item in self.measurements}))


def summarise(claim: ClaimResult) -> dict[str, dict[str, Spread]]:
    """Arm, then figure, to its mean and spread over the seeds."""
    table: dict[str, dict[str, Spread]] = {}
    for arm in dict.fromkeys(item.arm for item in claim.measurements):
        mine = [item.figures for item in claim.measurements if item.arm == arm]
        names = dict.fromkeys(name for figures in mine for name in figures)
        table[arm] = {name: _spread([row[name] for row in mine if name in row]) for name in names}
    return table


def write_claim(folder: Location, claim: ClaimResult, docs: Path | None) -> None:
    """Write `claim.json` to a run folder and, with `docs`, to `docs/claims/JOB.json` as well."""
    text = pretty(_as_json(claim))
    (folder / CLAIM_NAME).write_text(text)
    if docs is not None:
        (Location.of(docs) / "claims" / f"{claim.job}.json").write_text(text)


def read_claim(file: Location) -> ClaimResult:
    """Read a written claim; a UserError when it is something else."""
    try:
        content = json.loads(file.read_text())
        for derived in ("holds", "seeds", "summary"):
            content.pop(derived)
        for criterion in content["criteria"]:
            criterion.pop("holds")
            criterion["measured"] = _number(criterion["measured"])
        content["criteria"] = tuple(Criterion(**item) for item in content["criteria"])
        content["inputs"] = tuple(Input(**item) for item in content["inputs"])
        content["baselines"] = tuple(content["baselines"])
        content["parts"] = tuple(Part(**item) for item in content.get("parts", ()))
        content["measurements"] = tuple(
            Measurement(
                arm=item["arm"],
                seed=item["seed"],
                figures={name: _number(value) for name, value in item["figures"].items()},
            )
            for item in content["measurements"]
        )
        return ClaimResult(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is no measured claim: {error!r}") from error


def _as_json(claim: ClaimResult) -> dict[str, object]:
    content = asdict(claim)
    content["criteria"] = [
        {**asdict(criterion), "holds": criterion.holds} for criterion in claim.criteria
    ]
    summary = {
        arm: {name: asdict(spread) for name, spread in figures.items()}
        for arm, figures in summarise(claim).items()
    }
    head = {"job": claim.job, "holds": claim.holds, "seeds": claim.seeds}
    return {**head, **content, "summary": summary}


def _spread(values: Sequence[float]) -> Spread:
    if not all(map(math.isfinite, values)):
        return Spread(mean=math.nan, std=math.nan, seeds=len(values))
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean=statistics.fmean(values), std=std, seeds=len(values))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
