"""Where runs are written: `out` of a config, made absolute on the driver.

Workers change their folder, and the folder of a submitted job is a copy that Ray deletes, so no
relative path may get past this point.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heliostat.config.settings import settings
from heliostat.storage import Location

DEFAULT_OUT = "runs"
"""Where `heliostat runs` looks when it is not told."""


@dataclass(frozen=True)
class Output:
    """The place for runs."""

    place: Location
    note: str | None
    """A sentence for the user when it is not where one would look first."""


def resolve_output(out: str) -> Output:
    """Make `out` absolute: below HELIOSTAT_RUNS if set, else the caller's folder.

    In a submitted job the caller's folder is not there, and its unpacked copy does not last: there
    the home of submitted jobs takes its place.
    """
    here = settings()
    if "://" in out or Path(out).expanduser().is_absolute():
        return Output(Location.of(out if "://" in out else Path(out).expanduser()), None)
    if here.runs is not None:
        return Output(Location.of(here.runs) / out, None)
    if here.is_in_package:
        place = Location.of(here.submitted_home / out)
        note = (
            f"runs go to {place.uri} on the head node, because the job's own folder is a copy that "
            "Ray deletes; give out=URI or an absolute path to keep them elsewhere"
        )
        return Output(place, note)
    return Output(Location.of(Path(out).absolute()), None)
