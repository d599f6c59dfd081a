"""What runs there are, what became of them, and how they differ; plain rows for others to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from heliostat.errors import UserError
from heliostat.runs.differences import Difference, differences, flatten_config
from heliostat.runs.lock import is_held
from heliostat.runs.opening import CONFIG_NAME, IDENTITY_NAME
from heliostat.runs.record import RESULT_NAME, RunRecord, read_record
from heliostat.storage import Location

ShownStatus = Literal["running", "finished", "failed", "interrupted", "stopped"]
"""As recorded, but `stopped` for a run that claims to be running while nobody works on it."""


@dataclass(frozen=True)
class RunRow:
    """One line of a list of runs."""

    id: str
    job: str
    status: ShownStatus
    created: str
    seconds: float
    metrics: dict[str, float | None]
    folder: Location


@dataclass(frozen=True)
class RunDetail:
    """Everything known of a run."""

    row: RunRow
    record: RunRecord
    config: str
    """The resolved config, as YAML."""


@dataclass(frozen=True)
class Comparison:
    """Where runs differ; values in the order of `ids`."""

    ids: tuple[str, ...]
    config: list[Difference[object]]
    metrics: list[Difference[float | None]]


def list_runs(out: Location, job: str | None = None) -> list[RunRow]:
    """The runs in a folder, the newest first; with `job` only its own."""
    folders = [folder for folder in out.list() if (folder / IDENTITY_NAME).exists()]
    rows = [_row(folder, read_record(folder)) for folder in folders if _has_record(folder)]
    chosen = [row for row in rows if job is None or row.job == job]
    return sorted(chosen, key=lambda row: (row.created, row.id), reverse=True)


def find_run(out: Location, name: str) -> Location:
    """The folder of a run by its id or by the beginning of one, if only one begins so."""
    if name and (out / name / IDENTITY_NAME).exists():
        return out / name
    known = [folder.name for folder in out.list() if (folder / IDENTITY_NAME).exists()]
    matches = [identifier for identifier in known if name and identifier.startswith(name)]
    if len(matches) == 1:
        return out / matches[0]
    if matches:
        raise UserError(f"{name!r} begins the names of several runs: {', '.join(matches)}")
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {len(known)} runs"
    raise UserError(f"no run in {out} is named {name!r}; {hint}")


def show_run(out: Location, name: str) -> RunDetail:
    """Everything known of one run."""
    folder = find_run(out, name)
    record = read_record(folder)
    config = (folder / CONFIG_NAME).read_text()
    return RunDetail(row=_row(folder, record), record=record, config=config)


def compare_runs(out: Location, names: Sequence[str]) -> Comparison:
    """The config keys and the final metrics in which runs differ."""
    if len(names) < 2:
        raise UserError("to compare runs, name at least two")
    details = [show_run(out, name) for name in names]
    return Comparison(
        ids=tuple(detail.row.id for detail in details),
        config=differences([flatten_config(detail.config) for detail in details]),
        metrics=differences([detail.record.metrics for detail in details]),
    )


def _has_record(folder: Location) -> bool:
    return (folder / RESULT_NAME).exists()


def _row(folder: Location, record: RunRecord) -> RunRow:
    status: ShownStatus = record.status
    if status == "running" and not is_held(folder):
        status = "stopped"
    return RunRow(
        id=record.id,
        job=record.job,
        status=status,
        created=record.created,
        seconds=record.seconds,
        metrics=record.metrics,
        folder=folder,
    )
